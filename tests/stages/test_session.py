"""Killed, stopped, doubled and starved stages: the result is whole, or not there at all."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from stages import session as stage_session

NEVER = 1e9
TEST_PARAMS = {
    "recipes__fast__steps_per_epoch": 3,
    "recipes__dfnd__steps_per_epoch": 3,
    "methods__fast__warmup_calls": 5,
    "methods__dfnd__score_batch_size": 5,
}


def kill(target, n, when="before", match="", seconds=0.0):
    fault = {"target": target, "n": n, "when": when, "match": match, "action": "kill"}
    return {"faults": [fault], "checkpoint_seconds": seconds}


# A step is done when Progress.update is called; then its state is saved; each save replaces
# two files, tensors first.
IN_LOOP = {
    "before the first checkpoint": kill("stages._progress:Progress.update", 2, seconds=NEVER),
    "after a checkpoint": kill("kdci.store.checkpoints:Checkpoints.save", 2, "after"),
    "between a step and its checkpoint": kill("stages._progress:Progress.update", 3),
    "tensors written under a temporary name": kill("os:replace", 2, match=".safetensors"),
    "between tensors and JSON": kill("kdci.store.checkpoints:replace_file", 4),
    "JSON in place, old state not removed": kill("kdci.store.checkpoints:replace_file", 6, "after"),
    "in the middle of a flush": kill("os:fsync", 11),
}
AT_THE_END = {
    "lock taken": kill("os:replace", 1, match=".holder"),
    "before the card": kill("kdci.store.artifacts:_seal", 1),
    "before the rename": kill("kdci.store.artifacts:_replace_folder", 1),
    "old artifact moved aside": kill("os:rename", 1, "after"),
    "after the rename": kill("kdci.store.artifacts:_replace_folder", 1, "after"),
    "before the timing is in place": kill("os:replace", 1, match="timings"),
    "after the timing": kill("os:replace", 1, "after", match="timings"),
}
IN_REPORT = {
    "first figure": kill("os:replace", 2),
    "between figures": kill("os:replace", 4, "after"),
    "between results and metrics": kill("os:replace", 1, match="metrics.json"),
    "last file": kill("os:replace", 1, "after", match="report.md"),
}


def matrix():
    loops = [
        ("teacher", "fast"),
        ("substitute", "fast"),
        ("substitute", "dfnd"),
        ("vanilla", "fast"),
        ("vanilla", "dfnd"),
        ("kdci", "fast"),
        ("kdci", "dfnd"),
    ]
    for stage, method in loops:
        for point, settings in IN_LOOP.items():
            if (stage, method) == ("substitute", "dfnd") and point == "in the middle of a flush":
                settings = kill("os:fsync", 9)
            yield stage, method, point, settings
    for stage, method in [*loops, ("dictionary", "fast"), ("evaluate", "fast")]:
        for point, settings in AT_THE_END.items():
            yield stage, method, point, settings
    for point, settings in IN_REPORT.items():
        yield "report", "fast", point, settings


def cases():
    for stage, method, point, settings in matrix():
        first = point == "before the first checkpoint"
        always = (stage, method) == ("kdci", "fast") or (first and stage == "substitute")
        marks = [] if always else [pytest.mark.slow]
        yield pytest.param(
            stage, method, settings, id=f"{stage}-{method}-{point.replace(' ', '_')}", marks=marks
        )


@pytest.fixture(scope="module")
def reference(smoke_project):
    """Content hashes of uninterrupted runs under the tests' params, made as they are asked."""
    return {}


@pytest.fixture
def steps(built):
    """The built experiment, whose loops have a few more steps than when it was built."""
    return built.edit(**TEST_PARAMS)


def uninterrupted(reference, steps, call):
    if call not in reference:
        steps.build(call)
        reference[call] = steps.content(call)
        assert steps.leftovers() == []
    return reference[call]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "method", "settings"), list(cases()))
def test_killed_stage_ends_with_the_same_bytes_when_run_again(
    steps, forks, call, reference, stage, method, settings
):
    this = call(stage, method)
    expected = uninterrupted(reference, steps, this)

    assert forks.run(steps, this, **settings) == -signal.SIGKILL
    assert steps.run(this) == 0

    assert steps.content(this) == expected
    assert steps.leftovers() == []


@pytest.mark.parametrize(("seconds", "interval"), [(0.1, 10.0), (0.5, 10.0), (2.0, 40.0)])
def test_a_state_that_is_slow_to_save_is_saved_more_seldom(
    built, call, monkeypatch, seconds, interval
):
    """Saving takes a twentieth of the time at most."""
    from kdci.store.checkpoints import Checkpoints

    clock, intervals = [0.0], []
    monkeypatch.setattr(stage_session.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stage_session, "CHECKPOINT_SECONDS", 10.0)

    def slow(self, step, state):
        clock[0] += seconds

    monkeypatch.setattr(Checkpoints, "save", slow)
    save = stage_session.Session.save

    def noted(self, step, state):
        save(self, step, state)
        intervals.append(self._checkpoint_interval)

    monkeypatch.setattr(stage_session.Session, "save", noted)
    update = stage_session.Progress.update

    def ticking(self, step):
        clock[0] += 50.0  # more than any interval here
        update(self, step)

    monkeypatch.setattr(stage_session.Progress, "update", ticking)
    assert built.run(call("vanilla")) == 0
    assert intervals and set(intervals) == {interval}


def test_kill_after_kill_still_ends_with_the_same_bytes(steps, forks, call, reference):
    this = call("kdci")
    expected = uninterrupted(reference, steps, this)

    for _ in range(3):
        again = kill("kdci.store.checkpoints:Checkpoints.save", 2, "after")
        assert forks.run(steps, this, **again) in (-signal.SIGKILL, 0)
    assert steps.run(this) == 0

    assert steps.content(this) == expected


def test_resumed_stage_does_not_start_over(steps, forks, call, monkeypatch):
    from kdci.training.distillation import Distiller

    this = call("kdci")
    settings = kill("kdci.store.checkpoints:Checkpoints.save", 4, "after")
    assert forks.run(steps, this, **settings) == -signal.SIGKILL
    taken = []
    step = Distiller._train_step
    monkeypatch.setattr(Distiller, "_train_step", lambda self: (taken.append(1), step(self))[1])

    assert steps.run(this) == 0

    assert len(taken) == 2  # of six


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "optimizer",
        "source",
        pytest.param("student", marks=pytest.mark.slow),
        pytest.param("compensation", marks=pytest.mark.slow),
        pytest.param("means", marks=pytest.mark.slow),
    ],
)
def test_same_bytes_depend_on_every_part_of_the_state(
    steps, forks, call, reference, monkeypatch, part
):
    """Guards the tests above: a checkpoint that lost a part must show in the hash."""
    from kdci.training.distillation import Distiller

    this = call("kdci")
    expected = uninterrupted(reference, steps, this)
    settings = kill("kdci.store.checkpoints:Checkpoints.save", 4, "after")
    assert forks.run(steps, this, **settings) == -signal.SIGKILL
    load = Distiller.load_state_dict
    monkeypatch.setattr(
        Distiller,
        "load_state_dict",
        lambda self, state: load(self, {**state, part: self.state_dict()[part]}),
    )

    assert steps.run(this) == 0

    assert steps.content(this) != expected


def test_noise_matrix_and_its_optimizer_are_part_of_the_state(steps, forks, call, reference):
    this = call("kdci", "dfnd")
    expected = uninterrupted(reference, steps, this)
    settings = kill("kdci.store.checkpoints:Checkpoints.save", 3, "after")
    assert forks.run(steps, this, **settings) == -signal.SIGKILL
    assert steps.run(this) == 0
    assert steps.content(this) == expected


def test_other_params_never_meet_an_old_checkpoint(steps, forks, call):
    this = call("kdci")
    settings = kill("kdci.store.checkpoints:Checkpoints.save", 4, "after")
    assert forks.run(steps, this, **settings) == -signal.SIGKILL
    steps.edit(recipes__fast__learning_rate=0.05)
    assert steps.run(this) == 0
    interrupted = steps.content(this)

    assert steps.run(this) == 0

    assert steps.content(this) == interrupted


# -- one writer ------------------------------------------------------------------------------


@pytest.fixture
def paused(steps, forks, call, tmp_path):
    """A stage that waits, after its second checkpoint, until it is told to go on."""

    class Paused:
        flag, go = tmp_path / "paused", tmp_path / "go"

        def __init__(self, **settings) -> None:
            fault = {
                "target": "kdci.store.checkpoints:Checkpoints.save",
                "n": 2,
                "when": "after",
                "action": "pause",
                "flag": str(self.flag),
                "go": str(self.go),
            }
            self.call = call("kdci")
            self.started = forks.start(
                steps, self.call, faults=[fault], checkpoint_seconds=0, **settings
            )
            wait_until(self.flag.exists)
            wait_until(lambda: self.flag.read_text() != "")
            self.pid = int(self.flag.read_text())

    return Paused


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_second_writer_is_turned_away_and_told_whom_to_wait_for(
    steps, forks, paused, capsys, monkeypatch
):
    monkeypatch.setattr(stage_session, "LOCK_SECONDS", 0.2)
    holder = paused()
    before = steps.files()

    began = time.monotonic()
    code = steps.run(holder.call)

    assert code == 6
    assert time.monotonic() - began < 3
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"\b{holder.pid}\b", line)
    assert steps.files() == before
    holder.go.touch()
    assert forks.wait(holder.started) == 0


def test_lock_of_a_killed_holder_is_free_at_once(
    steps, forks, call, paused, reference, monkeypatch
):
    expected = uninterrupted(reference, steps, call("kdci"))
    monkeypatch.setattr(stage_session, "LOCK_SECONDS", 0.2)
    holder = paused()
    os.kill(holder.pid, signal.SIGKILL)
    assert forks.wait(holder.started) == -signal.SIGKILL

    assert steps.run(holder.call) == 0

    assert steps.content(holder.call) == expected


def test_another_cell_is_not_turned_away(steps, forks, call, paused, monkeypatch):
    monkeypatch.setattr(stage_session, "LOCK_SECONDS", 0.2)
    holder = paused()
    assert steps.run(call("vanilla")) == 0
    holder.go.touch()
    assert forks.wait(holder.started) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_state_and_says_so(steps, forks, call, paused, reference, number):
    expected = uninterrupted(reference, steps, call("kdci"))
    holder = paused()
    os.kill(holder.pid, number)
    holder.go.touch()

    assert forks.wait(holder.started) == 128 + number
    (line,) = [
        line
        for line in (steps.root.parent / "stderr.txt").read_text().splitlines()
        if line.startswith("kdci: error")
    ]
    assert "run it again" in line
    assert list(steps.root.glob(".kdci/work/distill@*/*/checkpoint-*.json"))

    assert steps.run(holder.call) == 0
    assert steps.content(holder.call) == expected
    assert steps.leftovers() == []


def test_second_signal_ends_the_stage_at_once(steps, forks, paused):
    holder = paused()
    os.kill(holder.pid, signal.SIGTERM)
    time.sleep(0.1)
    os.kill(holder.pid, signal.SIGTERM)
    assert forks.wait(holder.started) == -signal.SIGTERM  # it never went on


def test_stage_stops_with_its_parent_and_the_rerun_waits_for_it(
    steps, forks, call, paused, reference
):
    expected = uninterrupted(reference, steps, call("kdci"))
    orphan = paused(parent=True)
    assert orphan.pid != orphan.started
    os.kill(orphan.started, signal.SIGKILL)
    assert forks.wait(orphan.started) == -signal.SIGKILL
    assert is_running(orphan.pid)

    rerun = forks.start(steps, orphan.call)
    time.sleep(0.3)
    assert is_running(rerun)
    orphan.go.touch()

    assert forks.wait(rerun) == 0
    wait_until(lambda: not is_running(orphan.pid))
    assert steps.content(orphan.call) == expected
    assert steps.leftovers() == []


# -- a full disk, a place that can not be written ----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        pytest.param("teacher", 20_000, marks=pytest.mark.slow),
        ("substitute", 6_000),
        ("dictionary", 1_200),
        ("kdci", 20_000),
        ("evaluate", 2_000),
        pytest.param("report", 10_000, marks=pytest.mark.slow),
    ],
)
def test_full_disk_leaves_the_old_artifact_and_the_rerun_makes_the_same_one(
    built, forks, call, stage, limit
):
    this = call(stage)
    expected, before = built.content(this), built.files()

    code = forks.run(built, this, max_file_bytes=limit)

    stderr = (built.root.parent / "stderr.txt").read_text()
    errors = [line for line in stderr.splitlines() if line.startswith("kdci: error: ")]
    assert code == 4, stderr
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert built.files() == before
    assert built.run(this) == 0
    assert built.content(this) == expected
    assert built.leftovers() == []


@pytest.mark.parametrize("flush", [1, 3, 12])
def test_disk_that_stays_full_is_one_line_too(steps, forks, call, flush):
    """Nor can the note of the failure be written then."""
    full = {"target": "os:fsync", "n": flush, "when": "before", "action": "full"}
    before = steps.files()

    code = forks.run(steps, call("kdci"), faults=[full], checkpoint_seconds=0)

    stderr = (steps.root.parent / "stderr.txt").read_text()
    assert code == 4, stderr
    assert "Traceback" not in stderr
    assert "No space left on device" in stderr
    assert steps.files() == before


def test_read_only_place_fails_before_the_work(fresh, call, capsys, monkeypatch):
    import errno

    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr("kdci.data.datasets.loading.load_split", refuse)

    code = fresh.run(call("teacher"))

    assert code == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "Read-only file system" in line
    assert str(fresh.root) in line


# -- progress -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "method", "num_lines"),
    [
        ("teacher", "fast", 2),
        ("substitute", "fast", 2),
        ("kdci", "fast", 2),
        ("vanilla", "dfnd", 2),
        ("dictionary", "fast", 0),
        ("evaluate", "fast", 0),
    ],
)
def test_one_line_an_epoch_where_there_is_no_terminal(built, call, capfd, stage, method, num_lines):
    this = call(stage, method)
    assert built.run(this) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == num_lines
    assert all(line.startswith(this.name) for line in err.splitlines())
    assert "\r" not in err


@pytest.mark.parametrize("method", ["fast", "dfnd"])
def test_progress_never_goes_beyond_its_total(built, call, capfd, method):
    assert built.run(call("substitute", method)) == 0
    lines = capfd.readouterr().err.splitlines()
    shown = [re.search(r"substituting (\d+)(?:/(\d+))? ", line).groups() for line in lines]
    assert [int(done) for done, _ in shown] == [1, 2]
    assert all(total is None or int(done) <= int(total) for done, total in shown)
