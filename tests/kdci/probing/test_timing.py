"""A step's seconds by batch size: measured in bounded time, drawn out beyond it."""

from __future__ import annotations

import pytest
import torch
from kdci.probing.timing import Curve, Measuring


class Machine:
    """A clock that only steps move: so much each, and so much an image."""

    def __init__(self, *, fixed: float = 0.0, per_image: float = 0.0, most: int = 10**9) -> None:
        self.now = 0.0
        self.fixed, self.per_image, self.most = fixed, per_image, most
        self.batches: list[int] = []

    def step(self, batch: int) -> None:
        if batch > self.most:
            raise torch.OutOfMemoryError
        self.batches.append(batch)
        self.now += self.fixed + self.per_image * batch

    def measured(self, largest: int, *, times: int = 99) -> Measuring:
        found = Measuring(self.step, largest=largest, clock=lambda: self.now)
        while not found.is_done and times:
            found.extend()
            times -= 1
        return found


def test_sizes_grow_up_to_the_one_asked_for() -> None:
    machine = Machine(per_image=0.01)
    curve = machine.measured(100).curve
    assert list(dict.fromkeys(machine.batches)) == [4, 16, 64, 100]
    assert [batch for batch, _ in curve.points] == [4, 16, 64, 100]
    assert [took for _, took in curve.points] == pytest.approx([0.04, 0.16, 0.64, 1.0])


def test_the_smallest_batch_is_two_which_batch_norm_needs() -> None:
    machine = Machine(per_image=0.01)
    assert machine.measured(1).curve.largest == 2


def test_short_steps_are_repeated_more_often_than_long_ones() -> None:
    short, long = Machine(fixed=0.02), Machine(fixed=2.0)
    short.measured(4)
    long.measured(4)
    assert (len(short.batches), len(long.batches)) == (1 + 5, 2)


def test_what_the_next_size_takes_is_told_before() -> None:
    found = Machine(per_image=0.01).measured(100, times=2)
    assert not found.is_done
    assert found.next_seconds == pytest.approx(2 * 0.64)
    assert Machine().measured(100, times=0).next_seconds == 0.0


def test_a_batch_that_does_not_fit_ends_it() -> None:
    found = Machine(per_image=0.01, most=20).measured(100)
    assert found.is_done and found.curve.largest == 16
    with pytest.raises(torch.OutOfMemoryError):
        Machine(most=2).measured(100)


def test_a_disturbed_measurement_is_made_again() -> None:
    machine = Machine(per_image=0.5)
    found = Measuring(machine.step, largest=16, clock=lambda: machine.now)
    found.extend()
    disturbed = iter([30.0])

    def step(batch: int) -> None:
        machine.step(batch)
        machine.now += next(disturbed, 0.0)

    found._step = step
    found.extend()
    assert found.curve.seconds(16) == pytest.approx(8.0)


def test_a_size_may_be_measured_again() -> None:
    machine = Machine(fixed=1.0, per_image=0.1)
    found = machine.measured(4)
    machine.fixed = 0.2
    assert found.again_seconds == pytest.approx(2 * 1.4)
    found.repeat()
    machine.fixed = 3.0
    found.repeat()
    assert found.curve.points[0][1] == pytest.approx(0.6)
    assert len(found.curve.points) == 1


def test_others_on_the_machine_do_not_make_a_step_longer() -> None:
    """The clock runs three times as fast as this process computes."""
    machine = Machine(per_image=0.01)
    found = Measuring(
        machine.step,
        largest=16,
        clock=lambda: 3 * machine.now,
        processor=lambda: machine.now,
    )
    found.extend()
    assert found.curve.seconds(4) == pytest.approx(0.04)
    assert found.next_seconds == pytest.approx(3 * 2 * 0.16)  # waiting takes longer
    found.extend()
    assert found.curve.seconds(16) == pytest.approx(0.16)


def test_two_threads_do_not_make_a_step_longer() -> None:
    machine = Machine(per_image=0.01)
    found = Measuring(
        machine.step, largest=4, clock=lambda: machine.now, processor=lambda: 2 * machine.now
    )
    found.extend()
    assert found.curve.seconds(4) == pytest.approx(0.04)


def test_between_sizes_lies_a_line() -> None:
    curve = Curve(((4, 1.0), (16, 4.0)))
    assert curve.seconds(10) == 2.5
    assert curve.seconds(1) == curve.seconds(4) == 1.0


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (((4, 1.0),), 64.0),  # one size: in proportion
        (((4, 1.0), (16, 4.0)), 64.0),
        (((4, 3.0), (16, 8.0)), 128.0),  # a small fixed part
        (((4, 6.5), (16, 8.0)), 8.0 + 240 * 0.125),  # a fixed part of 6
        (((4, 1.0), (16, 8.0)), 128.0),  # never more than in proportion
        (((4, 8.0), (16, 8.0)), 8.0 + 240 * 0.125),  # never less than a quarter of it
    ],
)
def test_beyond_the_last_size(points: tuple[tuple[int, float], ...], expected: float) -> None:
    assert Curve(points).seconds(256) == pytest.approx(expected)
