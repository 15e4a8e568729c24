"""`python -m benchmarks` measures every case, and keeps what it measures by name."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bound, catalogue, interleaved, results
from tests.project_code import ROOT

CPU = torch.device("cpu")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


FEW = ("kd_step/dfnd", "inversion_step/deepinv", "dictionary_building")


@pytest.mark.slow
def test_a_case_of_each_kind_is_measured_every_way(tmp_path: Path) -> None:
    """By one run of tiny cases, into a file that holds other results."""
    out = tmp_path / "results.json"
    out.write_text('{"another": 1, "steps": {"kept": {}}}')
    done = run("--quick", "--threads", "1", "--out", str(out), "--only", *FEW)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(out.read_text())
    assert loaded.pop("another") == 1 and loaded[results.STEPS].pop("kept") == {}
    stored: dict[str, Any] = loaded[results.STEPS]
    cases = {
        case.key: case for case in catalogue.step_cases(quick=True) if case.key.startswith(FEW)
    }
    assert set(stored) == set(cases)
    for key, result in stored.items():
        assert set(result["ms"]) == set(cases[key].ways)
        assert result["n"] == cases[key].repeats and result["threads"] == 1
        assert all(result[name] for name in ("hardware", "torch", "revision", "date", "formats"))
        for clock in ("", "processor_"):
            require_ratios_of_medians(result, clock)


def require_ratios_of_medians(result: dict[str, Any], clock: str) -> None:
    for times in result[f"{clock}ms"].values():
        assert 0 < times["low"] <= times["median"] <= times["high"]
    medians = {way: each["median"] for way, each in result[f"{clock}ms"].items()}
    for way, ratio in result[f"{clock}times_plain"].items():
        assert ratio == pytest.approx(medians["plain"] / medians[way])
    for way, share in result[f"{clock}share_of_bound"].items():
        assert share == pytest.approx(medians["bound"] / medians[way])


def test_all_six_methods_are_there() -> None:
    for quick in (False, True):
        keys = [case.key for case in catalogue.step_cases(quick=quick)]
        assert len(keys) == len(set(keys))
        trained, made = (
            {key.split("/")[1] for key in keys if key.startswith(kind)}
            for kind in ("kd_step", "inversion_step")
        )
        assert len(trained) == 6 and trained - made == {"dfnd"}


@pytest.mark.slow
def test_a_setting_is_kept_beside_the_default(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    case = "kd_step/dfnd/wrn-10-1-wrn-10-1"
    arguments = ["--quick", "--threads", "1", "--out", str(out), "--only", case]
    threads = torch.get_num_threads()
    for more in ([], ["--no-fold-teacher", "--memory-format", "contiguous", "--no-keep-memory"]):
        assert command.main([*arguments, *more]) == 0
    torch.set_num_threads(threads)
    stored = results.read(out)[results.STEPS]
    other = f"{case}/memory_format=contiguous/fold_teacher=False/keep_memory=False"
    assert set(stored) == {case, other}
    assert set(stored[other]["formats"].values()) == {"fp32 contiguous"} or (
        stored[other]["precision"] == "bf16"
    )


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for mistake in (["--only", "nonsense"], ["--repeats", "1"]):
        with pytest.raises(SystemExit) as stop:
            command.main(mistake)
        assert stop.value.code == 2 and mistake[0] in capsys.readouterr().err


def test_check_fails_where_a_claim_is_not_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = {"name": "start", "value": 3.5, "limit": 3.0, "at_least": False, "unit": "s"}
    out = tmp_path / "results.json"
    for value, code in ((3.5, 1), (2.5, 0), (None, 0)):
        results.merge(out, {"start_up": {"claims": [{**claim, "value": value}]}})
        assert command.main(["--check", "--out", str(out)]) == code
    assert "not met  start 3.5 s" in capsys.readouterr().out


def test_actions_are_taken_in_turn() -> None:
    order: list[str] = []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = interleaved.taken_in_turn(actions, repeats=2, warm_up=1, device=CPU)
    assert "".join(order) == "ababab"
    assert [len(each) for each in taken.values()] == [2, 2]


def test_waiting_takes_no_processor_time() -> None:
    actions = {"wait": lambda: time.sleep(0.2)}
    ((taken,),) = interleaved.taken_in_turn(actions, repeats=1, warm_up=0, device=CPU).values()
    assert taken.seconds >= 0.2 and taken.processor < 0.1


def test_spread() -> None:
    assert interleaved.spread([0.003, 0.001, 0.002]) == pytest.approx(
        {"median": 2.0, "low": 1.5, "high": 2.5}
    )


HOLD = """
import torch
from benchmarks.peak_memory import peak
size = 64 * 2**20

def hold():
    kept = torch.ones(size, dtype=torch.uint8)
    del kept
    torch.ones(size // 4, dtype=torch.uint8)

print(peak(hold, torch.device("cpu")) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peaks")
def test_the_peak_is_what_an_action_needs_at_most() -> None:
    # In a process of its own, as it is used: this one's allocator may have room left.
    child = [sys.executable, "-c", HOLD]
    done = subprocess.run(child, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert float(done.stdout) == pytest.approx(1, rel=0.1)


def test_the_bound_takes_the_fastest_setting() -> None:
    slow = {torch.contiguous_format: 0.0, torch.channels_last: 0.02}

    def build(setting: bound.Setting) -> interleaved.Action:
        return lambda: time.sleep(slow[setting.memory_format])

    _, setting = bound.fastest(build, CPU)
    assert setting.memory_format == torch.contiguous_format


def test_settings_name_themselves() -> None:
    found = {str(setting) for setting in bound.settings(CPU)}
    assert found >= {"fp32 contiguous", "fp32 channels-last"}


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    """WRN-40-2 keeps feature maps of 32 images: far more than the pool, far less than a GB."""
    from benchmarks.peak_memory import in_a_child
    from kdci.config.params import Runtime as Settings

    key = "inversion_step/dafl/wrn-40-2-wrn-16-1"
    bytes_needed = in_a_child(key, "project", Settings(threads=1), tmp_path)
    assert 50e6 < bytes_needed < 1e9


@pytest.mark.slow
def test_a_way_acts_when_it_is_told_to(tmp_path: Path) -> None:
    """Each in a process of its own, whose end is told."""
    from benchmarks.way_process import opened
    from kdci.config.params import Runtime as Settings

    key, ways = "kd_step/dfnd/wrn-10-1-wrn-10-1", ["project", "plain"]
    settings = Settings(threads=1)
    with opened(key, ways, settings, tmp_path, quick=True) as processes:
        assert list(processes) == ways
        for process in processes.values():
            first, second = process.act(), process.act()
            assert min(*first, *second) > 0
        assert "wrn-10-1 frozen" in processes["project"].formats
        assert not processes["plain"].formats
    with pytest.raises(RuntimeError, match="has ended"):
        processes["plain"].act()
    with (
        pytest.raises(RuntimeError, match="has ended"),
        opened(key, ["nonsense"], settings, tmp_path, quick=True),
    ):
        pass


@pytest.mark.parametrize(("asked", "kept"), [(True, [True, False]), (False, [False, False])])
def test_the_baseline_has_the_allocator_as_it_comes(
    asked: bool, kept: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks import way_process
    from kdci.config.params import Runtime as Settings

    told: list[bool] = []

    def process(target: Any, args: tuple[Any, ...]) -> Any:
        told.append(inspect.signature(target).bind(*args).arguments["keep_memory"])
        args[0].send({})
        return SimpleNamespace(start=lambda: None, join=lambda: None)

    forks = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=process)
    monkeypatch.setattr(way_process, "_FORKS", forks)
    ways = ["project", "plain"]
    with way_process.opened("a", ways, Settings(), tmp_path, quick=True, keep_memory=asked):
        assert told == kept
