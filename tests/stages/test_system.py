import json
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from stages import _system
from stages._system import SystemMonitor


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(_system, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(_system, "INTERVAL_SECONDS", 0.02)


def watch(file, seconds=0.3, device="cpu", load=lambda: time.sleep(0.01)):
    began = time.monotonic()
    monitor = SystemMonitor(file, lambda: time.monotonic() - began, device)
    while time.monotonic() - began < seconds:
        load()
    return monitor.stop()


def test_samples_tell_of_this_process_and_are_on_disk_while_it_runs(quick, tmp_path):
    file = tmp_path / "system.jsonl"
    seen = watch(file, load=lambda: sum(range(10_000)))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert seen["system"] == rows
    assert 3 <= len(rows) <= 20
    process = psutil.Process()
    memory = process.memory_info().rss
    for row in rows:
        assert 0.5 * memory < row["memory_bytes"] < 2 * memory
        assert 0 <= row["cpu_percent"] <= 100 * psutil.cpu_count() + 50
        assert abs(row["time"] - time.time()) < 60
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert sum(row["cpu_percent"] for row in rows) > 0
    assert seen["peak_memory_bytes"] >= 0.9 * max(row["memory_bytes"] for row in rows)
    assert 0 < seen["cpu_seconds"] <= sum(process.cpu_times()[:4]) + 0.1
    assert "peak_gpu_memory_bytes" not in seen


def test_samples_grow_rarer_with_time(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(_system, "MAX_SHARE", 1.0)  # each wait as long as all before
    assert len(watch(tmp_path / "system.jsonl", seconds=0.5)["system"]) <= 6


def test_resumed_run_goes_on_from_the_samples_of_the_interrupted_one(quick, tmp_path):
    file = tmp_path / "system.jsonl"
    earlier = {"time": 1.0, "seconds": 5.0, "cpu_seconds": 1000.0, "memory_bytes": 7}
    file.write_text(json.dumps(earlier) + '\n{"time": 2.0, "sec')
    seen = watch(file)
    assert seen["system"][0] == earlier
    assert len(seen["system"]) > 2
    assert all(row["cpu_seconds"] > 1000 for row in seen["system"][1:])
    assert seen["cpu_seconds"] > 1000


@pytest.mark.parametrize("damage", ["no folder", "psutil fails", "no thread"])
def test_what_goes_wrong_is_left_out(quick, monkeypatch, tmp_path, damage):
    file = tmp_path / "system.jsonl"
    if damage == "no folder":
        file = tmp_path / "missing" / "system.jsonl"
    elif damage == "psutil fails":
        monkeypatch.setattr(_system, "_process", lambda: 1 / 0)
    else:
        monkeypatch.setattr(threading.Thread, "start", _cannot_start)
    seen = watch(file, seconds=0.1)
    assert json.dumps(seen)
    assert not file.exists()
    assert not [t for t in threading.enumerate() if t.name == "system-metrics"]


def _cannot_start(self):
    raise RuntimeError("can't start new thread")


def test_gpu_memory_is_that_of_this_process(quick, monkeypatch, tmp_path):
    """Against a stand-in for torch.cuda: there may be no GPU here."""
    asked = []

    def memory_reserved(device):
        asked.append(device)
        return 10**9

    def utilization(device):
        raise ModuleNotFoundError("pynvml")

    cuda = SimpleNamespace(
        memory_reserved=memory_reserved,
        max_memory_reserved=lambda device: 2 * 10**9,
        utilization=utilization,
    )
    monkeypatch.setattr(_system, "_torch", lambda: SimpleNamespace(cuda=cuda))
    seen = watch(tmp_path / "system.jsonl", device="cuda:1")
    assert set(asked) == {"cuda:1"}
    assert {row["gpu_memory_bytes"] for row in seen["system"]} == {10**9}
    assert "gpu_percent" not in seen["system"][0]
    assert seen["peak_gpu_memory_bytes"] == 2 * 10**9
    cuda.utilization = lambda device: 55
    again = watch(tmp_path / "again.jsonl", device="cuda:1")
    assert {row["gpu_percent"] for row in again["system"]} == {55.0}


def test_stage_leaves_them_in_its_timing_and_no_thread_behind(quick, fresh, call):
    fresh.build(call("teacher"))
    timing = json.loads(fresh.layout.timing(fresh.artifact(call("teacher"))).read_text())
    assert timing["system"]
    assert timing["system"][-1]["seconds"] <= timing["seconds"]
    assert timing["peak_memory_bytes"] > 10**7
    assert timing["cpu_seconds"] > 0
    assert fresh.leftovers() == []
    assert "system" not in json.dumps(fresh.card(call("teacher")))
    assert not [t for t in threading.enumerate() if t.name == "system-metrics"]


def test_stage_that_fails_leaves_no_thread_behind(quick, fresh, call):
    fresh.edit(teacher__learning_rate=1e30)
    assert fresh.run(call("teacher")) == 5
    assert not [t for t in threading.enumerate() if t.name == "system-metrics"]
