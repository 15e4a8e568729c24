"""Seconds that are drawn out: a made-up clock tells what each call takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch

from pipelines.checking.estimating import timing
from pipelines.checking.estimating.timing import draw_lines, timed, usual

CPU = torch.device("cpu")


class Clock:
    """Two clocks that stand still unless somebody works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = self.computed = 0.0
        clocks = {
            "perf_counter": lambda: self.passed,
            "process_time": lambda: self.computed,
        }
        monkeypatch.setattr(timing, "time", SimpleNamespace(**clocks))

    def work(self, seconds: float, *, waited: float = 0.0) -> None:
        self.passed += seconds + waited
        self.computed += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_others_on_the_machine_do_not_make_work_longer(clock: Clock) -> None:
    assert timed(lambda: clock.work(2.0, waited=5.0), CPU) == 2.0


def test_two_threads_do_not_make_it_longer(clock: Clock) -> None:
    assert timed(lambda: clock.work(4.0, waited=-2.0), CPU) == 2.0


@pytest.mark.parametrize(
    ("took", "most", "is_warm", "expected", "number"),
    [
        ([9.0, 2.0, 3.0], None, False, 2.0, 2),  # the first prepares; one long one is enough
        ([9.0, 0.1, 0.3, 0.2], None, False, 0.2, 4),  # short ones until half a second
        ([9.0, 0.1, 0.3], 3, False, 0.2, 3),  # or until there are no more
        ([9.0], 1, False, 9.0, 1),
        ([9.0, 2.0], None, True, 9.0, 1),  # what was prepared before counts at once
        ([0.1, 0.3, 0.2], None, True, 0.2, 3),
        ([0.1, 0.3], 2, True, 0.2, 2),
    ],
)
def test_work_is_repeated_after_a_first_time(
    clock: Clock,
    took: list[float],
    most: int | None,
    is_warm: bool,
    expected: float,
    number: int,
) -> None:
    left = iter(took)
    done: list[float] = []

    def work() -> None:
        done.append(next(left))
        clock.work(done[-1])

    assert usual(work, CPU, most=most, is_warm=is_warm) == pytest.approx(expected)
    assert len(done) == number


def test_seconds_grow_with_each_count_by_its_own_rate() -> None:
    asked: list[Mapping[str, int]] = []

    def observe(counts: Mapping[str, int]) -> dict[str, float]:
        asked.append(counts)
        steps, images = counts["steps"], counts["images"]
        return {"part": 0.3 + 0.2 * steps + 0.001 * images, "refresh": 0.1 + 0.2 * steps}

    least, most = {"steps": 1, "images": 10}, {"steps": 1000, "images": 5000}
    lines = draw_lines(observe, least, most)
    assert lines["part"].seconds(most) == pytest.approx(0.3 + 200 + 5)
    assert lines["refresh"].seconds(most) == pytest.approx(0.1 + 200)
    assert max(counts["steps"] for counts in asked) < 20  # and not a thousand of them


def test_noise_is_not_drawn_out() -> None:
    """What does not depend on a count takes a little longer the second time, by chance."""
    readings = iter([1.1, 1.0, 1.1, 1.2, 1.15, 1.1, 1.2, 1.1, 1.2, 1.15])
    lines = draw_lines(lambda counts: {"part": next(readings)}, {"images": 1}, {"images": 90})
    assert lines["part"].seconds({"images": 90}) == 1.0


def test_a_count_that_is_small_is_measured_as_it_is() -> None:
    asked = []

    def observe(counts: Mapping[str, int]) -> dict[str, float]:
        asked.append(counts["steps"])
        return {"part": 1e-4 * counts["steps"]}

    lines = draw_lines(observe, {"steps": 1}, {"steps": 7})
    assert asked == [1, 1, 7, 7] and lines["part"].seconds({"steps": 7}) == pytest.approx(7e-4)
