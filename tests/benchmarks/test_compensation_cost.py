"""The benchmark runs and writes what it says; how long anything takes is not for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.project_code import ROOT

TINY = ("--teacher", "wrn-10-1", "--student", "wrn-10-1", "--batch-size", "8", "--repeats", "2")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compensation_cost", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a tiny run leaves in a file that holds another benchmark's result."""
    out = tmp_path_factory.mktemp("benchmark") / "results.json"
    out.write_text('{"another": 1}')
    done = run(*TINY, "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(out.read_text())
    return {**loaded, "stdout": done.stdout}


@pytest.mark.slow
def test_a_result_says_what_it_was_measured_on(results: dict[str, Any]) -> None:
    assert results["another"] == 1
    result = results["compensation_cost"]
    expected = {"teacher": "wrn-10-1", "student": "wrn-10-1", "batch_size": 8, "repeats": 2}
    assert {name: result[name] for name in expected} == expected
    assert result["threads"] == 1 and result["precision"] in {"bf16", "fp32"}
    assert all(result[name] for name in ("hardware", "device", "torch", "python", "revision"))


def test_every_size_of_the_compensation_costs_something(results: dict[str, Any]) -> None:
    result = results["compensation_cost"]
    assert result["step_ms"] > 0 and result["step_bytes"] > 0
    cases = result["cases"]
    assert [(case["num_prototypes"], case["hidden_dim"]) for case in cases] == [
        (10, 64),
        (100, 64),
        (100, 256),
    ]
    for case in cases:
        ratios = ("time_percent", "time_percent_fastest", "step_ratio")
        assert case["extra_ms"] > 0 and all(case[name] > 0 for name in ratios)
        assert case["memory_percent"] == pytest.approx(
            100 * case["extra_bytes"] / result["step_bytes"]
        )


def test_the_memory_counted_is_that_of_lambda_the_weights_and_the_dictionary(
    results: dict[str, Any],
) -> None:
    """Counted by hand, 4 bytes a number; a weight also has a gradient and a momentum."""
    batch, classes = 8, 10
    for case in results["compensation_cost"]["cases"]:
        n, width = case["num_prototypes"], case["hidden_dim"]
        weights = width * (2 * classes + 1)
        dictionary = n * classes + n + 1
        saved = batch * (n + classes)
        assert case["extra_bytes"] == 4 * (3 * weights + dictionary + saved)


def test_the_table_has_a_line_for_each(results: dict[str, Any]) -> None:
    lines = results["stdout"].splitlines()
    for size in ("N = 10, width 64", "N = 100, width 64", "N = 100, width 256"):
        (line,) = [line for line in lines if line.startswith(size + " ")]
        assert line.count("%") >= 2


def test_a_median_of_one_is_refused() -> None:
    done = run("--repeats", "1")
    assert done.returncode == 2 and "--repeats" in done.stderr
