"""In which precision and memory format a network computes, and how that is decided.

The fastest of a few candidates on this very device is found by a short probe with random weights.
A measurement can come out another way the next time, and other formats round differently: so a
candidate further down the list has to be clearly faster, and the decision is kept in a file that
every later process of the workspace reads. Naming both in params leaves nothing to measure.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kdci.store.artifacts import replace_file, storage_errors
from kdci.store.hashing import hash_json

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]

PRECISIONS: dict[bool, tuple[Precision, ...]] = {True: ("bf16", "fp32"), False: ("fp32",)}
"""What may be chosen, by whether the device computes bf16 natively; the likeliest first."""
MEMORY_FORMATS: tuple[MemoryFormat, ...] = ("channels_last", "contiguous")

CLEARLY_FASTER = 1.25
"""What a candidate's speed must be of the one before it, so that noise decides nothing."""
MOST_IMAGES = 32
LONG_ENOUGH = 0.05
"""Seconds of a pass: of larger networks fewer images are tried."""
REPEATS = 3

Step = Callable[[int], None]
"""Computes with so many images."""


@dataclass(frozen=True)
class ComputeFormat:
    """How a network computes.

    Attributes:
        precision: `bf16`: its forward pass under autocast; losses and statistics stay fp32.
        memory_format: Of its weights and feature maps.
    """

    precision: Precision
    memory_format: MemoryFormat

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format}"

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Type the forward pass is cast to; None: no autocast."""
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def channels_last(self) -> bool:
        """Whether weights are stored channels-last."""
        return self.memory_format == "channels_last"

    @property
    def options(self) -> dict[str, Any]:
        """The format as ``kdci.models.build_pixel_model`` takes it."""
        return {"autocast_dtype": self.autocast_dtype, "channels_last": self.channels_last}

    @property
    def layout(self) -> torch.memory_format:
        """The memory format as torch names it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def choose(seconds: Mapping[ComputeFormat, float]) -> ComputeFormat:
    """Return the first format that no later one beats clearly.

    Args:
        seconds: Of the same work in each format, the preferred first.
    """
    chosen, *others = seconds
    for other in others:
        if seconds[other] * CLEARLY_FASTER < seconds[chosen]:
            chosen = other
    return chosen


def measure(
    build: Callable[[ComputeFormat], Step], formats: Sequence[ComputeFormat], device: torch.device
) -> dict[ComputeFormat, float]:
    """Return the seconds that the same pass takes in each format, the least of some runs.

    Of a CPU its own seconds count, of all threads together: others may use this machine too.

    Args:
        build: Returns what is timed.
        formats: The candidates; the first sets the number of images.
        device: Where it computes.
    """
    steps = {one: build(one) for one in formats}
    images = _fitting_images(steps[formats[0]], device)
    for step in steps.values():
        step(images)  # the first pass prepares kernels
    seconds = dict.fromkeys(formats, float("inf"))
    for _ in range(REPEATS):  # in turn, for what disturbs one to meet all
        for one, step in steps.items():
            seconds[one] = min(seconds[one], _timed(step, images, device))
    return seconds


def _fitting_images(step: Step, device: torch.device) -> int:
    images = 4
    step(images)
    while images < MOST_IMAGES and _timed(step, images, device) < LONG_ENOUGH:
        images *= 2
    return images


def _timed(step: Step, images: int, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    step(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def pass_of(model: nn.Module, image_shape: tuple[int, int, int], *, training: bool) -> Step:
    """Return a pass over random images: forward, and backward where the model trains.

    Args:
        model: Takes (B, C, H, W) in [0, 1], returns a ``Prediction``.
        image_shape: (C, H, W).
        training: Whether its weights get gradients; else it predicts.
    """
    device = next(model.parameters()).device
    model.train(training)

    def step(images: int) -> None:
        random_images = torch.rand(images, *image_shape, device=device)
        with torch.set_grad_enabled(training):
            logits = model(random_images).logits
            if training:
                logits.sum().backward()

    return step


def remembered(folder: Path, subject: Mapping[str, Any], probe: Callable[[], Any]) -> ComputeFormat:
    """Return what was decided for ``subject`` before; else probe, and keep the decision.

    Two processes that ask at once may both probe; the first decision on disk holds for both.

    Args:
        folder: Where decisions lie, one file each.
        subject: What the decision is for: network, images, role, threads.
        probe: Measures: seconds by format, the preferred first.

    Raises:
        StorageError: The decision can not be kept.
    """
    facts = {
        **subject,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    file = folder / f"{hash_json(facts)[:16]}.json"
    known = _read(file)
    if known is not None:
        return known
    seconds: Mapping[ComputeFormat, float] = probe()
    chosen = choose(seconds)
    record = {
        "subject": facts,
        "chosen": asdict(chosen),
        "seconds": {str(one): round(value, 5) for one, value in seconds.items()},
    }
    with storage_errors(file):
        folder.mkdir(parents=True, exist_ok=True)
    known = _read(file)
    if known is not None:
        return known
    replace_file(file, json.dumps(record, indent=1).encode())
    return chosen


def _read(file: Path) -> ComputeFormat | None:
    """Return the decision in a file; None: there is none, or it can not be read."""
    try:
        chosen = json.loads(file.read_text(encoding="utf-8"))["chosen"]
        return ComputeFormat(**chosen)
    except (OSError, ValueError, KeyError, TypeError):
        return None
