"""What several tests share: tiny networks, ways to damage a file, states bit for bit."""

from __future__ import annotations

import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdci.models import PixelModel, Prediction


class TinyNet(nn.Module):
    """One convolution with BatchNorm and a linear layer; 1 x 8 x 8 images, 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Prediction:
        features = torch.relu(self.norm(self.conv(images))).mean((2, 3))
        return Prediction(4 * self.head(features), features)


@pytest.fixture
def tiny_model() -> Callable[[int], PixelModel]:
    """Return a maker of tiny models that leaves the global random stream as it was."""

    def make(seed: int) -> PixelModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = PixelModel(TinyNet(), mean=(0.4,), std=(0.3,))
            model(torch.rand(64, 1, 8, 8))  # running statistics
        return model

    return make


@pytest.fixture
def flatten() -> Callable[[Any], dict[str, object]]:
    """Return a function that spells a nested state as leaves; tensors by their bytes."""

    def walk(node: Any, path: str = "") -> dict[str, object]:
        if isinstance(node, Tensor):
            content = node.detach().cpu().contiguous().numpy().tobytes()
            return {path: (str(node.dtype), tuple(node.shape), content)}
        if isinstance(node, dict | list | tuple):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            leaves: dict[str, object] = {path: len(node)}
            for key, value in items:
                leaves.update(walk(value, f"{path}/{key!r}"))
            return leaves
        return {path: repr(node)}

    return walk


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which no file of this process can grow beyond some bytes.

    Python ignores SIGXFSZ, so that the system call fails instead, as on a full disk.
    """

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@dataclass(frozen=True)
class Damage:
    """One way a file goes bad.

    Attributes:
        name: Which.
        canary: Exists once a pickle of ours was executed.
    """

    name: str
    canary: Path

    def apply(self, file: Path) -> None:
        """Damage ``file``."""
        data = file.read_bytes()
        if self.name == "missing":
            file.unlink()
        elif self.name in ("extra tensor", "missing tensor", "wrong shape"):
            self._change_tensors(file)
        elif self.name == "pickle":
            file.write_bytes(pickle.dumps(Evil(self.canary)))
        elif self.name == "whole module":
            torch.save({"model": nn.Linear(2, 2), "evil": Evil(self.canary)}, file)
        elif self.name == "deflated zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(Evil(self.canary)))
                archive.writestr("archive/data/0", bytes(100_000))
        else:
            file.write_bytes(self._changed(data))

    def _changed(self, data: bytes) -> bytes:
        noise = torch.randint(256, (1000,), generator=torch.Generator().manual_seed(0))
        changes: dict[str, Callable[[], bytes]] = {
            "empty": lambda: b"",
            "half": lambda: data[: len(data) // 2],
            "random bytes": lambda: bytes(noise.tolist()),
            "data byte": lambda: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
            "header byte": lambda: data[:10] + bytes([data[10] ^ 1]) + data[11:],
        }
        return changes[self.name]()

    def _change_tensors(self, file: Path) -> None:
        tensors = load_file(file)
        first = next(iter(tensors))
        if self.name == "extra tensor":
            tensors["another"] = torch.zeros(3)
        elif self.name == "missing tensor":
            del tensors[first]
        else:
            tensors[first] = torch.zeros(7, 7)
        save_file(tensors, file)


BYTES = ("empty", "half", "random bytes", "data byte", "header byte", "missing")
PICKLES = ("pickle", "whole module", "deflated zip")
OTHER_TENSORS = ("extra tensor", "missing tensor", "wrong shape")


@pytest.fixture(params=[*BYTES, *PICKLES])
def damage(request: pytest.FixtureRequest, tmp_path: Path) -> Damage:
    """Return each way that any file can go bad."""
    return Damage(request.param, tmp_path / "canary")


@pytest.fixture(params=OTHER_TENSORS)
def other_tensors(request: pytest.FixtureRequest, tmp_path: Path) -> Damage:
    """Return each way that a safetensors file can be whole, but another one."""
    return Damage(request.param, tmp_path / "canary")


@pytest.fixture(params=["empty", "half", "random bytes", *PICKLES])
def no_tensors(request: pytest.FixtureRequest, tmp_path: Path) -> Damage:
    """Return each way that a safetensors file can be no such file any more."""
    return Damage(request.param, tmp_path / "canary")
