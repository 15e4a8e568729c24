"""Are Python and the installed packages those that the project asks for?

pip keeps to the bounds when it installs; what is installed afterwards, by hand or for another
project, may cross them, and then fails in ways that do not name them.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipelines.checking.diagnosis.findings import Finding, ok, problem, warning

_DEEP_SECONDS = 120.0
_PREFECT = "import prefect.server.api.server"
"""Loads all of the server's routes; a FastAPI that Prefect does not know fails here."""


def check_versions() -> Iterator[Finding]:
    """Compare what is installed with the bounds in the project's own metadata."""
    project = _project()
    if project is None:
        yield problem("kdci is not installed here", "run `make setup`")
        return
    yield _python(next(iter(project.metadata.get_all("Requires-Python") or []), ""))
    for extra, requirements in _requirements(project).items():
        yield from _group(extra, requirements)


def check_metadata(root: Path) -> Iterator[Finding]:
    """Compare the installed metadata with the pyproject.toml that it was made from."""
    project, file = _project(), root / "pyproject.toml"
    if project is None or not file.is_file():
        return
    try:
        stated = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except tomllib.TOMLDecodeError as error:
        yield warning(f"{file} can not be read: {error}", "mend that line")
        return
    if stated.get("name") != "kdci":
        return
    if _normal(_stated(stated)) != _normal(project.requires or ()):
        what = "pyproject.toml asks for other packages than when kdci was installed"
        yield warning(what, "run `make setup`")


def check_prefect_server() -> Finding:
    """Load Prefect's server in a process of its own, as a run without a server does."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PREFECT],
            capture_output=True,
            text=True,
            timeout=_DEEP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return problem(f"Prefect's server does not load in {_DEEP_SECONDS:.0f} s")
    seconds = time.monotonic() - began
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        mend = "install what constraints.txt says: `make setup`; or `kdci run --no-prefect`"
        return problem(f"Prefect's server does not load: {reason}", mend)
    return ok(f"Prefect's server loads, in {seconds:.1f} s")


def _project() -> Distribution | None:
    """Return the installed project; a build's leftovers in a checkout come second."""
    found = sorted(
        distributions(name="kdci"),
        key=lambda one: str(getattr(one, "_path", "")).endswith(".egg-info"),
    )
    return found[0] if found else None


def _python(required: str) -> Finding:
    here = platform.python_version()
    if required and not SpecifierSet(required).contains(here, prereleases=True):
        return problem(f"Python {here} is not {required}", "make the environment anew with one")
    return ok(f"Python {here}")


def _requirements(project: Distribution) -> dict[str, list[Requirement]]:
    """Return what the project asks for, by extra; "" is asked for always."""
    extras = project.metadata.get_all("Provides-Extra") or []
    found: dict[str, list[Requirement]] = {"": [], **{extra: [] for extra in extras}}
    for text in project.requires or ():
        requirement = Requirement(text)
        for extra in found:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                found[extra].append(requirement)
                break  # the first is "": what is always asked for
    return found


def _group(extra: str, requirements: Sequence[Requirement]) -> Iterator[Finding]:
    installed = {one.name: _version(one.name) for one in requirements}
    missing = [name for name, here in installed.items() if here is None]
    if extra and missing:
        these = "" if len(missing) == len(installed) else f" ({', '.join(missing)})"
        yield ok(f"not installed: {extra}{these}", f"pip install 'kdci[{extra}]' if it is needed")
    elif missing:
        yield problem(f"not installed: {', '.join(missing)}", "run `make setup`")
    bad = [one for one in requirements if _complaint(one, installed[one.name])]
    for one in bad:
        what = f"{one.name} {installed[one.name]} {_complaint(one, installed[one.name])}"
        yield problem(what, f"pip install '{one.name}{one.specifier}'")
    fine = len(requirements) - len(missing) - len(bad)
    if fine:
        these = f"packages of {extra}" if extra else "packages"
        yield ok(f"{these} within their bounds: {fine}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _complaint(requirement: Requirement, here: str | None) -> str:
    """Say which bound an installed version crosses; "": none."""
    if here is None:
        return ""
    for bound in requirement.specifier:
        if not bound.contains(here, prereleases=True):
            if bound.operator in (">=", ">", "~="):
                return f"is below the floor {bound}"
            if bound.operator in ("<", "<="):
                return f"is above the cap {bound}"
            return f"is not {bound}"
    return ""


def _stated(project: Mapping[str, Any]) -> Iterator[str]:
    """Yield the requirements of a pyproject.toml as metadata has them."""
    yield from project.get("dependencies", ())
    for extra, requirements in project.get("optional-dependencies", {}).items():
        yield from (f'{requirement}; extra == "{extra}"' for requirement in requirements)


def _normal(requirements: Iterable[str]) -> set[str]:
    return {str(Requirement(one)) for one in requirements}
