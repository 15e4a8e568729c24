"""What is claimed of the project's speed, and whether the results bear it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.results import STEPS, Results

KD_TIMES, KD_AIM = 4.0, 6.0
KD_SHARE = 70.0
INVERSION_TIMES = 3.0
SAMPLING_SHARE = 2.0
METHODS = ("dafl", "fast", "cmi", "deepinv", "mosaick", "dfnd")
SMALL_PAIR, LARGE_PAIR = "wrn-40-2-wrn-16-1", "resnet-34-resnet-18"


@dataclass(frozen=True)
class Claim:
    """A number and its limit.

    Attributes:
        name: What is claimed.
        value: As measured; None: not run.
        limit: What it has to reach, or to stay within.
        at_least: Which of the two.
        unit: Behind both numbers.
    """

    name: str
    value: float | None
    limit: float
    at_least: bool
    unit: str

    @property
    def met(self) -> bool | None:
        """Tell whether it holds; None: it was not run."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def verdict(self) -> str:
        """Tell the same in words."""
        if self.value is None:
            return "not run"
        return "met" if self.met else "not met"


def claims(results: Results) -> Iterator[Claim]:
    """Yield every claim; those of other benchmarks are in their results."""
    steps = results.get(STEPS, {})
    for method in METHODS:
        case = steps.get(f"kd_step/{method}/{SMALL_PAIR}")
        name = f"KD step of {method}, wrn-40-2 to wrn-16-1, batch 128"
        yield Claim(f"{name}: times the plain baseline", _times(case), KD_TIMES, True, "x")
        yield Claim(f"{name}: share of the bound", _share(case), KD_SHARE, True, "%")
    case = steps.get(f"kd_step/fast/{LARGE_PAIR}")
    name = "KD step of fast, resnet-34 to resnet-18, batch 128: share of the bound"
    yield Claim(name, _share(case), KD_SHARE, True, "%")
    for method in METHODS[:-1]:
        times = _times(steps.get(f"inversion_step/{method}/{SMALL_PAIR}"))
        name = f"inversion step of {method}, wrn-40-2: times the plain baseline"
        yield Claim(name, times, INVERSION_TIMES, True, "x")
    yield Claim(
        "bank sampling with augmentation: share of a KD step (fast, wrn-40-2 to wrn-16-1)",
        _sampling(results),
        SAMPLING_SHARE,
        False,
        "%",
    )
    for row in results.get("compensation_cost", {}).get("cases", ()):
        if row["allowed_percent"] is not None:
            name = f"KDCI, N = {row['num_prototypes']}, width {row['hidden_dim']}: share of a step"
            yield Claim(name, row["time_percent"], row["allowed_percent"], False, "%")
    for result in results.values():
        if isinstance(result, dict):
            yield from (Claim(**stated) for stated in result.get("claims", ()))


def _times(case: Mapping[str, Any] | None) -> float | None:
    return None if case is None else float(case["times_plain"]["project"])


def _share(case: Mapping[str, Any] | None) -> float | None:
    return None if case is None else 100 * float(case["share_of_bound"]["project"])


def _sampling(results: Results) -> float | None:
    """Return what a batch's sampling is of a step, where both were measured."""
    case = results.get(STEPS, {}).get(f"kd_step/fast/{SMALL_PAIR}")
    milliseconds = results.get("bank_sampling", {}).get("batch_ms")
    if case is None or milliseconds is None:
        return None
    return float(100 * milliseconds / case["ms"]["project"]["median"])
