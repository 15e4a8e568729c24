"""Where things are timed: the params' runtime, and what stands in for networks and images.

Photographs of a dataset's usual size stand in for images that are not there.
"""

from __future__ import annotations

import io
import resource
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch import nn

from kdci.config.catalog import DatasetSpec, stem_for
from kdci.config.params import Params
from kdci.data.files.bundled import bundled_file
from kdci.data.files.decoding import decode_all
from kdci.data.files.parquet import read_blob
from kdci.data.open_world.photographs import PHOTOGRAPHS
from kdci.models import PixelModel
from kdci.models.networks import Networks
from kdci.training.runtime import Runtime, processor, start

_NUM_IMAGES = 64
_ENLARGED = 2
"""Side of a made-up photograph over that of the square it is cut to."""
_AT_ONCE = 32


@dataclass(frozen=True)
class Machine:
    """This process, set up as a stage's.

    Attributes:
        params: The experiment.
        folder: For files that nobody needs afterwards.
        formats: Where it is kept in which format a network computes; see ``Networks``.
    """

    params: Params
    folder: Path
    formats: Path

    @cached_property
    def runtime(self) -> Runtime:
        """Device, threads and precision, set up.

        Raises:
            UserError: The device is not there.
        """
        block = self.params.runtime
        return start(
            device=block.device,
            threads=block.threads,
            precision=block.precision,
            memory_format=block.memory_format,
        )

    @property
    def spec(self) -> DatasetSpec:
        """The dataset."""
        return self.params.data.spec

    @property
    def stem(self) -> str:
        """First layers of its networks."""
        return stem_for(self.params.backbone.stem, self.spec.image_size)

    def student(self, backbone: str) -> PixelModel:
        """Return a network to be trained."""
        networks = Networks(self.runtime, self.formats)
        return networks.untrained(backbone, self.spec, stem=self.stem, seed=0)

    def teacher(self, backbone: str) -> PixelModel:
        """Return a frozen network whose weights are random, and whose statistics are noise's."""
        networks = Networks(self.runtime, self.formats)
        model = networks.stand_in(backbone, self.spec, stem=self.stem)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0  # else features would grow from layer to layer
        with torch.no_grad():
            model.train()(self.noise(_NUM_IMAGES).to(self.runtime.device).float() / 255)
        return model.eval().requires_grad_(requires_grad=False)

    def noise(self, number: int) -> torch.Tensor:
        """Return images of noise, uint8 (number, C, H, W), the same ones each time."""
        random = torch.Generator().manual_seed(0)
        shape = (number, *self.spec.image_shape)
        return torch.randint(256, shape, dtype=torch.uint8, generator=random)

    def describe(self) -> str:
        """Return what computes, in words."""
        runtime = self.runtime
        if runtime.device.type == "cuda":
            return f"{torch.cuda.get_device_name(runtime.device)}, {runtime.precision}"
        threads = "1 thread" if runtime.threads == 1 else f"{runtime.threads} threads"
        return f"{processor()}, {threads}, {runtime.precision}"

    def peak_bytes(self) -> int:
        """Return the most memory so far: on CUDA of its tensors, else of this process."""
        if self.runtime.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.runtime.device))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def memory(self) -> int:
        """Return how much memory there is where it computes."""
        if self.runtime.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.runtime.device).total_memory)
        return int(psutil.virtual_memory().total)


class Unheard:
    """Takes metrics and forgets them."""

    def log(self, step: int, **values: float) -> None:
        """Do nothing."""


def photograph(spec: DatasetSpec) -> tuple[bytes, str]:
    """Return an encoded image as a dataset's usually are, and its format."""
    whole = spec.square_share is not None
    side = spec.image_size * _ENLARGED if whole else spec.image_size
    file = bundled_file(f"datasets/images/{PHOTOGRAPHS[0]}.jpg")
    image = Image.open(file).convert("L" if spec.channels == 1 else "RGB").resize((side, side))
    out, kind = io.BytesIO(), "jpeg" if whole else "png"
    image.save(out, format=kind.upper(), quality=90)
    return out.getvalue(), kind


def write_photographs(folder: Path, number: int, spec: DatasetSpec) -> Path:
    """See to it that a folder has so many of them, and return it."""
    data, kind = photograph(spec)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(list(folder.iterdir())), number):
        (folder / f"{index:07d}.{kind}").write_bytes(data)
    return folder


def decoding_seconds(spec: DatasetSpec, *, seconds: float) -> float:
    """Return what such an image takes to be decoded.

    Args:
        spec: Says size and channels.
        seconds: Decoding stops after about this long.
    """
    items = [photograph(spec)[0]] * _AT_ONCE
    square = None if spec.square_share is None else spec.image_size
    done, began = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - began < seconds:
        decode_all(items, read_blob, channels=spec.channels, square=square)
        done += len(items)
    return (time.perf_counter() - began) / done
