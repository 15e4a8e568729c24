"""What stages load before their first step: torch, and no other library that takes long."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

SLOW_TO_IMPORT = {
    "sklearn",
    "scipy",
    "pandas",
    "sympy",
    "matplotlib",
    "torchvision",
    "torch._dynamo",
    "torch._inductor",
    "mlflow",
    "dvc",
    "prefect",
    "ray",
}
STAGES = ["teacher", "substitute", "dictionary", "kdci", "evaluate", "report"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_slow_is_imported_before_the_first_step(built, call, environment, stage):
    this = call(stage, "dfnd")
    arguments = ["--params", str(built.root / "params.yaml"), *this.arguments]
    command = ["-m", "benchmarks.first_step", str(time.time()), f"stages.{this.stage}", *arguments]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "kdci.config.params" in imported
    assert not imported & SLOW_TO_IMPORT
    assert ("torch" in imported) == (stage != "report")
