"""Checkpoints, good and bad, as users and attackers hand them over."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Poison:
    """Runs a shell command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists once a pickle of ours was executed."""
    return tmp_path / "canary"


@pytest.fixture
def poisoned(canary: Path) -> dict[str, Any]:
    """A checkpoint whose loading runs a command, unless only tensors are read."""
    return {"state_dict": nn.Linear(3, 2).state_dict(), "epoch": Poison(canary)}


@pytest.fixture
def saved() -> Callable[..., bytes]:
    """Return a function that gives the bytes torch.save writes."""

    def save(value: Any, *, legacy: bool = False) -> bytes:
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=not legacy)
        return file.getvalue()

    return save


@pytest.fixture
def rezipped() -> Callable[..., bytes]:
    """Return a function that writes an archive anew, its members changed or compressed."""

    def rezip(
        data: bytes,
        *,
        method: int = zipfile.ZIP_STORED,
        changes: Mapping[str, bytes] | None = None,
    ) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
            members = {name: old.read(name) for name in old.namelist()} | dict(changes or {})
            for name, content in members.items():
                new.writestr(name, content)
        return out.getvalue()

    return rezip


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A small state dict."""
    torch.manual_seed(0)
    return {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
