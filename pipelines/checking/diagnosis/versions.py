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
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import Specifier, SpecifierSet

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
    required = (project.metadata.get_all("Requires-Python") or [""])[0]
    here = platform.python_version()
    if SpecifierSet(required).contains(here, prereleases=True):
        yield ok(f"Python {here}")
    else:
        yield problem(f"Python {here} is not {required}", "make the environment anew with one")
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
    installed = {
        one.name: next((found.version for found in distributions(name=one.name)), None)
        for one in requirements
    }
    missing = [name for name, here in installed.items() if here is None]
    if extra and missing:
        these = "" if len(missing) == len(installed) else f" ({', '.join(missing)})"
        yield ok(f"not installed: {extra}{these}", f"pip install 'kdci[{extra}]' if it is needed")
    elif missing:
        yield problem(f"not installed: {', '.join(missing)}", "run `make setup`")
    crossed = {one: _crossed(one, installed[one.name]) for one in requirements}
    bad = {one: bound for one, bound in crossed.items() if bound is not None}
    for one, bound in bad.items():
        what = f"{one.name} {installed[one.name]} is {_WORDS.get(bound.operator, 'not')} {bound}"
        yield problem(what, f"pip install '{one.name}{one.specifier}'")
    fine = len(requirements) - len(missing) - len(bad)
    if fine:
        these = f"packages of {extra}" if extra else "packages"
        yield ok(f"{these} within their bounds: {fine}")


_FLOOR, _CAP = "below the floor", "above the cap"
_WORDS = {">=": _FLOOR, ">": _FLOOR, "~=": _FLOOR, "<": _CAP, "<=": _CAP}


def _crossed(requirement: Requirement, here: str | None) -> Specifier | None:
    """Return the bound that an installed version crosses; None: none."""
    if here is None:
        return None
    bounds = requirement.specifier
    return next((one for one in bounds if not one.contains(here, prereleases=True)), None)


def _stated(project: Mapping[str, Any]) -> Iterator[str]:
    """Yield the requirements of a pyproject.toml as metadata has them."""
    yield from project.get("dependencies", ())
    for extra, requirements in project.get("optional-dependencies", {}).items():
        yield from (f'{requirement}; extra == "{extra}"' for requirement in requirements)


def _normal(requirements: Iterable[str]) -> set[str]:
    return {str(Requirement(one)) for one in requirements}
