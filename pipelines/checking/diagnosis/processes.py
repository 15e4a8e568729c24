"""Processes at work in the workspace, and those that what started them has left behind.

They are named and never ended: whether one is wanted is for a person to say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psutil

from pipelines.checking.diagnosis.findings import Finding, ok, problem, warning

_SERVERS = {("mlflow", "server"), ("mlflow", "ui"), ("prefect", "server"), ("ray", "start")}
_SERVER_PROGRAMS = ("raylet", "gcs_server")
_SERVER_APPS = ("prefect.server.api.server", "mlflow.server")
_RUNNERS = ("dvc", "kdci")
_COMMANDS = ("kdci", "pipelines.cli")
"""What a person starts, and may leave to itself."""


class _Found(NamedTuple):
    """A process that works in the workspace."""

    process: psutil.Process
    kind: str
    """`stage`, `command` (one of `kdci`), `runner` (DVC or a helper of ours) or `server`."""
    name: str
    """What it is, in a few words."""


def check_processes(root: Path) -> Iterator[Finding]:
    """Look for processes of the workspace whose starter is gone."""
    found = list(_in_workspace(root.resolve()))
    orphans = [one for one in found if _is_orphan(one)]
    for one in orphans:
        pid = one.process.pid
        what = f"{one.name} (process {pid}) is at work here, and what started it is gone"
        if one.kind == "stage":
            yield problem(what, f"kill {pid}; it saves its state first")
        else:
            yield warning(what, f"kill {pid}, unless it is meant to stay")
    at_work = [one for one in found if one not in orphans]
    shown = [one for one in at_work if one.kind in ("stage", "server")]
    names = ", ".join(f"{one.name} ({one.process.pid})" for one in shown)
    if names:
        yield ok(f"at work here: {names}")
    elif not orphans:
        yield ok("no process is left over here")


def _in_workspace(root: Path) -> Iterator[_Found]:
    for process in psutil.process_iter(["cwd", "cmdline"]):  # None: another user's
        place, words = process.info["cwd"], process.info["cmdline"]
        if process.pid != os.getpid() and place and Path(place).is_relative_to(root):
            described = _describe(words or ())
            if described is not None:
                yield _Found(process, *described)


def _describe(words: Sequence[str]) -> tuple[str, str] | None:
    """Return kind and name of a command line; None: it is none of ours."""
    if not words:
        return None
    programs = [os.path.basename(word) for word in words[:2]]
    module = _module(words)
    if module.startswith("stages."):
        return "stage", f"{module} {' '.join(words[words.index(module) + 1 :])}".strip()
    if module.startswith(("pipelines.", "dvc")) or any(name in _RUNNERS for name in programs):
        name = module or next(name for name in programs if name in _RUNNERS)
        return "command" if name in _COMMANDS else "runner", name
    if programs[0] in _SERVER_PROGRAMS:
        return "server", programs[0]
    app = next((app for app in _SERVER_APPS for word in words if word.startswith(app)), None)
    if app is not None:
        return "server", f"{app.partition('.')[0]} server"
    named = ((os.path.basename(tool), command) for tool, command in pairwise(words[:4]))
    return next((("server", " ".join(pair)) for pair in named if pair in _SERVERS), None)


def _module(words: Sequence[str]) -> str:
    """Return the module that a Python command runs; "": it is another kind of command."""
    if not os.path.basename(words[0]).startswith("python"):
        return ""
    options = iter(words[1:])
    for word in options:
        if word == "-m":
            return next(options, "")
        if word in ("-W", "-X"):
            next(options, "")  # its value
        elif word == "-c" or not word.startswith("-"):
            return ""  # what follows is the program's own
    return ""


def _is_orphan(found: _Found) -> bool:
    """Tell whether what started a process is gone.

    A child whose parent ended is handed to another process: to the first one, or to one that
    takes in orphans. That one is not of its session, where a parent is, unless the child made
    a session of its own. A stage says itself that DVC started it.
    """
    process = found.process
    if found.kind == "command":
        return False
    try:
        words = (one.as_dict(["cmdline"])["cmdline"] for one in process.parents())
        if any(_describe(of_parent or ()) for of_parent in words):
            return False
        if found.kind == "stage" and "DVC_STAGE" in process.environ():
            return True
        parent = process.parent()
        if parent is None:
            return False  # the first one of its kind of world, as in a container
        session = os.getsid(process.pid)
        return session != process.pid and os.getsid(parent.pid) != session
    except (psutil.Error, OSError):
        return False
