"""The file that tells what trials did with a stage, whatever became of the worker."""

import pytest

from pipelines.sweeping import attempts


@pytest.fixture
def file(tmp_path):
    return tmp_path / "stage.jsonl"


def test_no_file_tells_of_no_attempt(file):
    assert attempts.read_history(file) is None


def test_a_killed_attempt_has_no_exit_code(file):
    attempts.begin(file, {"ray.trial_id": "a"})
    history = attempts.read_history(file)
    assert (history.attempts, history.exit_code, history.links) == (1, None, {"ray.trial_id": "a"})


def test_the_last_attempt_counts(file):
    attempts.begin(file, {"ray.trial_id": "a"})
    attempts.begin(file, {"ray.trial_id": "b"})
    attempts.end(file, 5, "kdci: error: x")
    history = attempts.read_history(file)
    assert (history.attempts, history.exit_code, history.message) == (2, 5, "kdci: error: x")
    assert history.links == {"ray.trial_id": "b"}
    assert 0 <= history.seconds < 5


def test_a_later_attempt_that_is_cut_short_undoes_the_earlier_ones_end(file):
    attempts.begin(file, {})
    attempts.end(file, 4, "disk")
    attempts.begin(file, {})
    assert attempts.read_history(file).exit_code is None


def test_torn_lines_are_left_out_and_forgotten_is_gone(file):
    attempts.begin(file, {})
    with file.open("a") as out:
        out.write('{"end": 3, "exit_')
    assert attempts.read_history(file).attempts == 1
    attempts.forget(file)
    attempts.forget(file)
    assert attempts.read_history(file) is None
