"""The process that reads a checkpoint: what it says when memory runs out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdci.intake import child


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs the process's work in this one, as it fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child, "limit_process", lambda: None)  # for good, and of this process
    arguments = ["child", "--subject", "x.pt", "--sha256", "0" * 64]
    monkeypatch.setattr("sys.argv", arguments)

    def run(fail: Any) -> tuple[int, dict[str, str]]:
        monkeypatch.setattr(child, "_read", lambda *_a, **_k: fail())
        return child.main(), json.loads((tmp_path / "report.json").read_text())

    return run


def test_torch_that_finds_no_memory(answer) -> None:
    """It raises no MemoryError, and says so in words of its own."""
    with pytest.raises(RuntimeError, match="alloc"):
        torch.empty(2**55, dtype=torch.uint8)
    code, report = answer(lambda: torch.empty(2**55, dtype=torch.uint8))
    assert code == 3 and report["error"] == "IntegrityError"
    assert "more memory than reading a checkpoint of its size may take" in report["what"]


def test_python_that_finds_none(answer) -> None:
    code, report = answer(lambda: bytearray(2**62))
    assert code == 3 and "more memory" in report["what"]


def test_another_error_of_torch_is_not_taken_for_it(answer) -> None:
    with pytest.raises(RuntimeError, match="mat1"):
        answer(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
