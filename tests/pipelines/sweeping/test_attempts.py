"""The file that tells what trials did with a stage, whatever became of the worker."""

import pytest

from pipelines.sweeping import attempts


@pytest.fixture
def place(tmp_path):
    return tmp_path, "stage"


def test_no_file_tells_of_no_attempt(place):
    assert attempts.read_history(*place) is None


def test_a_killed_attempt_has_no_exit_code(place):
    attempts.begin(*place, {"ray.trial_id": "a"})
    history = attempts.read_history(*place)
    assert (history.attempts, history.exit_code, history.links) == (1, None, {"ray.trial_id": "a"})


def test_the_last_attempt_counts(place):
    attempts.begin(*place, {"ray.trial_id": "a"})
    attempts.begin(*place, {"ray.trial_id": "b"})
    attempts.end(*place, 5, "kdci: error: x")
    history = attempts.read_history(*place)
    assert (history.attempts, history.exit_code, history.message) == (2, 5, "kdci: error: x")
    assert history.links == {"ray.trial_id": "b"}
    assert 0 <= history.seconds < 5


def test_a_later_attempt_that_is_cut_short_undoes_the_earlier_ones_end(place):
    attempts.begin(*place, {})
    attempts.end(*place, 4, "disk")
    attempts.begin(*place, {})
    assert attempts.read_history(*place).exit_code is None


def test_torn_lines_are_left_out_and_forgotten_is_gone(place):
    attempts.begin(*place, {})
    with (place[0] / "attempts/stage.jsonl").open("a") as out:
        out.write('{"end": 3, "exit_')
    assert attempts.read_history(*place).attempts == 1
    attempts.forget(*place)
    attempts.forget(*place)
    assert attempts.read_history(*place) is None
