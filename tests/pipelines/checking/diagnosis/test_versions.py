"""Whether what is installed fits together."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.checking.diagnosis.findings import Level
from pipelines.checking.diagnosis.versions import (
    check_metadata,
    check_prefect_server,
    check_versions,
)
from tests.pipelines.checking.diagnosis._findings import lines, trouble


def distribution(folder: Path, name: str, version: str, *more: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(text + "".join(f"{line}\n" for line in more))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place whose distributions come before those that are really installed."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def test_versions_here_are_within_their_bounds() -> None:
    found = list(check_versions())
    assert trouble(iter(found)) == []
    assert any("Python 3." in one.what for one in found)


def test_versions_beyond_a_bound_are_named(installed: Path) -> None:
    distribution(installed, "fastapi", "0.160.0")
    distribution(installed, "dvc", "3.50.1")
    assert trouble(check_versions()) == [
        "problem  dvc 3.50.1 is below the floor >=3.67  (pip install 'dvc>=3.67')",
        "problem  fastapi 0.160.0 is above the cap <0.151  (pip install 'fastapi<0.151,>=0.139')",
    ]


def test_missing_packages_and_extras(installed: Path) -> None:
    distribution(
        installed,
        "kdci",
        "9.9",
        "Requires-Python: >=4",
        "Provides-Extra: sweep",
        "Provides-Extra: dev",
        "Requires-Dist: typer>=0.1",
        "Requires-Dist: no-such-package>=1",
        "Requires-Dist: none-for-this; python_version < '3'",
        "Requires-Dist: no-such-ray[tune]>=2; extra == 'sweep'",
        "Requires-Dist: pytest>=999; extra == 'dev'",
        "Requires-Dist: no-such-linter; extra == 'dev'",
    )
    told = lines(check_versions())
    assert any("problem  Python 3." in line and "is not >=4" in line for line in told)
    assert "problem  not installed: no-such-package  (run `make setup`)" in told
    assert "ok       packages within their bounds: 1" in told
    sweep = "ok       not installed: sweep  (pip install 'kdci[sweep]' if it is needed)"
    assert sweep in told
    assert any("not installed: dev (no-such-linter)" in line for line in told)
    assert any("is below the floor >=999" in line for line in told)
    assert not any("none-for-this" in line for line in told)


def test_metadata_older_than_pyproject(installed: Path, tmp_path: Path) -> None:
    distribution(installed, "kdci", "1", "Provides-Extra: x", 'Requires-Dist: a>=1; extra == "x"')
    text = '[project]\nname = "kdci"\n[project.optional-dependencies]\nx = ["a >= 1"]\n'
    (tmp_path / "pyproject.toml").write_text(text)
    assert lines(check_metadata(tmp_path)) == []
    (tmp_path / "pyproject.toml").write_text(text.replace(">= 1", ">= 2"))
    assert "pyproject.toml asks for other packages" in trouble(check_metadata(tmp_path))[0]
    (tmp_path / "pyproject.toml").write_text("[project")
    assert "can not be read" in trouble(check_metadata(tmp_path))[0]
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert lines(check_metadata(tmp_path)) == []


@pytest.mark.slow
def test_prefects_server_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_prefect_server().line.startswith("ok       Prefect's server loads, in ")
    # A FastAPI whose Body refuses what Prefect gives it, as from 0.151 on.
    (tmp_path / "sitecustomize.py").write_text(
        "import fastapi\n"
        "body = fastapi.Body\n"
        "def strict(*args, min_items=None, **kwargs):\n"
        "    if min_items is not None:\n"
        "        raise TypeError('Body() got an unexpected keyword argument')\n"
        "    return body(*args, **kwargs)\n"
        "fastapi.Body = strict\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = check_prefect_server()
    assert found.level is Level.problem
    assert "TypeError: Body() got an unexpected keyword argument" in found.line
