"""Size and speed of student and teacher on this machine, measured and as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from kdci.exporting.formats import Model

TEACHER, STUDENT = "teacher", "student"
BATCHES = (1, 32)
SECONDS = 3.0
"""How long one batch size may be measured, all networks together."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
_BYTES = 4


@dataclass(frozen=True)
class Size:
    """How large networks are together.

    Attributes:
        parameters: Trainable numbers.
        weight_bytes: Of all float tensors of the state as float32: parameters, BatchNorm
            statistics, a dictionary.
    """

    parameters: int
    weight_bytes: int


@dataclass(frozen=True)
class Footprint:
    """Size and speed of student and teacher on one machine.

    Attributes:
        sizes: By `student` and, where it is at hand, `teacher`.
        latencies: Median milliseconds of a forward pass, by batch size and by the same names.
        threads: Of torch while they were measured.
        processor: Name of the processor.
    """

    sizes: Mapping[str, Size]
    latencies: Mapping[int, Mapping[str, float]]
    threads: int
    processor: str

    def asdict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "sizes": {name: asdict(size) for name, size in self.sizes.items()},
            "median_latency_ms": {
                f"batch {size}": dict(of_batch) for size, of_batch in self.latencies.items()
            },
            "threads": self.threads,
            "processor": self.processor,
            "device": "cpu",
        }


def size_of(*modules: nn.Module) -> Size:
    """Return the size of modules that make one network."""
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    floats = [
        tensor
        for module in modules
        for tensor in module.state_dict().values()
        if tensor.is_floating_point()
    ]
    return Size(parameters, _BYTES * sum(tensor.numel() for tensor in floats))


@torch.inference_mode()
def median_latencies(
    models: Mapping[str, Model], images: Tensor, *, seconds: float = SECONDS
) -> dict[str, float]:
    """Return the median seconds of one forward pass, by model.

    The models take turns, so that a machine that slows down slows all of them. The first round
    is not counted.

    Args:
        models: Any number.
        images: One batch, (N, C, H, W).
        seconds: When to stop, once a few rounds are done.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model(images)
    end = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, model in models.items():
            began = time.perf_counter()
            model(images)
            taken[name].append(time.perf_counter() - began)
    return {name: median(times) for name, times in taken.items()}


def footprint_rows(footprint: Footprint) -> list[list[str]]:
    """Return the table: a head, then a line a network, and how they compare."""
    sizes, latencies = footprint.sizes, footprint.latencies
    head = ["", "parameters", "weights, fp32", *(f"batch {batch}, ms" for batch in latencies)]
    rows = [
        [
            name,
            f"{size.parameters:,}",
            _bytes(size.weight_bytes),
            *(f"{of_batch[name]:.3g}" for of_batch in latencies.values()),
        ]
        for name, size in sizes.items()
    ]
    if TEACHER in sizes:
        small, large = sizes[STUDENT], sizes[TEACHER]
        factors = [large.parameters / small.parameters, large.weight_bytes / small.weight_bytes]
        factors += [of_batch[TEACHER] / of_batch[STUDENT] for of_batch in latencies.values()]
        rows.append(["teacher / student", *(f"x {factor:.2f}" for factor in factors)])
    return [head, *rows]


def footprint_note(footprint: Footprint) -> str:
    """Return what the numbers were measured on."""
    threads = "1 thread" if footprint.threads == 1 else f"{footprint.threads} threads"
    note = (
        f"Median time of a forward pass in PyTorch on one machine ({footprint.processor}, "
        f"{threads}, float32), after a warm-up"
    )
    if TEACHER in footprint.sizes:
        return f"{note}, the two in turn."
    return f"{note}. The teacher is not at hand: there is nothing to compare with."


def _bytes(number: int) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"
