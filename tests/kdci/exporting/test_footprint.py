from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdci.exporting.footprint import (
    LEAST_ROUNDS,
    MOST_ROUNDS,
    Size,
    median_latencies,
    size_of,
)
from tests.kdci.exporting._experiment import compensation


def test_size_counts_parameters_and_all_floats() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(5, 2))
    # Convolution 4 x 3 x 9, scale and shift 4 + 4, matrix 10, bias 2; statistics 4 + 4, no counter.
    assert size_of(model) == Size(128, 4 * 136)
    assert size_of(model.bfloat16()) == Size(128, 4 * 136)


def test_size_of_a_compensation_has_its_dictionary_and_no_random_stream() -> None:
    phi = compensation(num_prototypes=4, dimension=10, hidden_dim=8)
    parameters = 8 * 10 + 8 * 10 + 8
    assert size_of(nn.Linear(10, 10), phi) == Size(
        110 + parameters, 4 * (110 + parameters + 4 * 10 + 4 + 1)
    )


class Clock:
    """A time that passes when models say so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def model(self, name: str, *seconds: float) -> Callable[[Tensor], Tensor]:
        """Return a model that takes so long, call by call."""
        left = iter(seconds)

        def run(images: Tensor) -> Tensor:
            self.calls.append(name)
            self.now += next(left)
            return images

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("kdci.exporting.footprint.time", made)
    return made


def test_median_of_models_that_take_turns(clock: Clock) -> None:
    first, second = [100.0, 5, 1, 2, 4, 3], [0.0, 10, 10, 10, 20, 20]  # after a round of warm-up
    models = {"a": clock.model("a", *first), "b": clock.model("b", *second)}
    found = median_latencies(models, torch.zeros(1, 1), seconds=1)
    assert clock.calls == ["a", "b"] * (LEAST_ROUNDS + 1)
    assert found == {"a": 3.0, "b": 10.0}


def test_measuring_ends_when_the_time_is_up_or_enough_was_measured(clock: Clock) -> None:
    median_latencies({"a": clock.model("a", *[1.0] * 20)}, torch.zeros(1), seconds=7.5)
    assert len(clock.calls) == 1 + 8
    clock.calls.clear()
    median_latencies({"a": clock.model("a", *[0.0] * 500)}, torch.zeros(1), seconds=7.5)
    assert len(clock.calls) == 1 + MOST_ROUNDS
