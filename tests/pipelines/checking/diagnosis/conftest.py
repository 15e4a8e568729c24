"""What every diagnosis is made in: a folder, and no server that this machine may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdci.store.layout import Layout
from pipelines.checking.diagnosis import servers


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, "digits-smoke")


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setattr(servers, "PATIENCE", 0.5)
    return monkeypatch
