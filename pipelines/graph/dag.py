"""DVC's graph of stages, and what its status says of each: read once, as plain values.

DVC's own ``status`` names the stages whose dependencies differ, and not those that follow from
them: ``Dag.verdicts`` works that out.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from kdci.errors import BusyError, UserError
from kdci.graph.cells import CELLS_STAGE

BUSY_SECONDS = 5.0
"""How long the DVC of a killed run has to leave: its lock of what it wrote outlives it a moment."""
_KINDS = {"changed deps": "dep", "changed outs": "out"}


class Verdict(StrEnum):
    """What `dvc repro` would do with a stage."""

    unchanged = "unchanged"
    """Nothing: it is up to date."""
    changed = "changed"
    """Run it, or restore it from the run cache: something it depends on differs."""
    follows = "follows"
    """Look again: something that it is made from may come out differently."""


@dataclass(frozen=True)
class Change:
    """One difference between what a stage was made from and what is there now.

    Attributes:
        kind: `param`, `dep`, `out`, or `command`.
        subject: The dotted key or the path that differs.
        how: `modified`, `new`, `deleted`, ... in DVC's words.
    """

    kind: str
    subject: str
    how: str


@dataclass(frozen=True)
class DagStage:
    """One stage of ``dvc.yaml``.

    Attributes:
        name: ``stage@axes``.
        command: What it runs.
        upstream: Names of the stages whose outputs it reads.
        deps: Files and folders that it depends on, relative to the project folder.
        params: Dotted params keys that it depends on.
        outs: What it makes, relative to the project folder.
    """

    name: str
    command: str
    upstream: tuple[str, ...]
    deps: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Its entry of ``dvc.yaml``."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Dag:
    """All stages, each after those it is made from.

    Attributes:
        stages: By name, in an order in which they can run.
        changes: What differs, by stage; a stage without an entry has no difference of its own.
    """

    stages: Mapping[str, DagStage]
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    def select(self, targets: Sequence[str]) -> Dag:
        """Return the part that is made of ``targets`` and what they need; see ``named``. None: all.

        Raises:
            UserError: One is no stage.
        """
        if not targets:
            return self
        named = self.named(targets)
        return self.part({*named, *self.ancestors(named)})

    def named(self, targets: Sequence[str]) -> list[str]:
        """Return the stages that ``targets`` name, without what these are made from.

        Args:
            targets: Stages, entries of dvc.yaml, or patterns of either with `*`.

        Raises:
            UserError: One is no stage.
        """
        found = {name for target in targets for name in self._named(target)}
        return [name for name in self.stages if name in found]

    def descendants(self, names: Iterable[str]) -> set[str]:
        """Return the stages that are made from any of ``names``, at any distance."""
        reached = set(names)
        for stage in self.stages.values():  # parents come first
            if reached.intersection(stage.upstream):
                reached.add(stage.name)
        return reached - set(names)

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """Return the stages that any of ``names`` is made from, at any distance."""
        reached = set(names)
        for stage in reversed(list(self.stages.values())):
            if stage.name in reached:
                reached.update(stage.upstream)
        return reached - set(names)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What would become of each stage."""
        found = dict.fromkeys(self.stages, Verdict.unchanged)
        found |= dict.fromkeys(self.descendants(self.changes), Verdict.follows)
        return found | {name: Verdict.changed for name in found if self.changes.get(name)}

    def _named(self, target: str) -> list[str]:
        found = [
            stage.name
            for stage in self.stages.values()
            if fnmatch.fnmatchcase(stage.name, target) or fnmatch.fnmatchcase(stage.group, target)
        ]
        if not found:
            known = [*dict.fromkeys(stage.group for stage in self.stages.values()), *self.stages]
            close = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise UserError(
                target, "is no stage of dvc.yaml with these params", f"{hint}see `dvc stage list`"
            )
        return found

    def part(self, names: set[str]) -> Dag:
        """Return these stages alone, with what differs of them."""
        stages = {name: stage for name, stage in self.stages.items() if name in names}
        return Dag(stages, {name: self.changes[name] for name in stages if name in self.changes})


def read_dag(root: Path, *, status: bool = True) -> Dag:
    """Read the graph of the project's stages and, unless told not to, their status.

    Args:
        root: The project folder.
        status: Whether to compare every stage with what is there now, which hashes what changed.

    Raises:
        UserError: There is no DVC project, or its dvc.yaml can not be read.
        BusyError: Another DVC process writes what is to be compared.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return _read(root, status=status)
        except LockError as error:
            if time.monotonic() > deadline:
                what = f"is in use: {str(error).splitlines()[0]}"
                fix = "wait for that process, or see `kdci doctor`"
                raise BusyError(str(root), what, fix) from None
            time.sleep(0.2)
        except DvcException as error:
            what = " ".join(str(error).split())
            raise UserError(str(root / "dvc.yaml"), what, "mend it; see `dvc stage list`") from None


def _read(root: Path, *, status: bool) -> Dag:
    from dvc.repo import Repo

    # The private flag is that of `dvc --wait-for-lock`: another command may be at it.
    with Repo(str(root), _wait_for_lock=True) as repo:
        graph = repo.index.graph
        # The look at cells.yaml is no part of the experiment: whoever asks here renews it first.
        known = {stage.name: stage for stage in graph if stage.name not in (None, CELLS_STAGE)}
        upstream = {
            name: [other.name for other in graph.successors(stage) if other.name in known]
            for name, stage in known.items()
        }
        stages = {name: _stage(known[name], upstream[name], root) for name in _ordered(upstream)}
        found = repo.status() if status else {}
        changes = {
            name: tuple(change for entry in entries for change in _changes(entry, root))
            for address, entries in found.items()
            if (name := address.rpartition(":")[2]) in stages
        }
        return Dag(stages, changes)


def _ordered(upstream: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield names after all that they depend on, stages of one rank in the order of dvc.yaml."""
    position = {name: place for place, name in enumerate(upstream)}
    sorter = TopologicalSorter(upstream)
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=lambda name: position[name])
        yield from ready
        sorter.done(*ready)


def _stage(stage: Any, upstream: Sequence[str], root: Path) -> DagStage:
    deps = [dep for dep in stage.deps if not hasattr(dep, "params")]
    params = [str(key) for dep in stage.deps for key in getattr(dep, "params", ())]
    return DagStage(
        name=stage.name,
        command=stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd or ()),
        upstream=tuple(upstream),
        deps=tuple(relative(dep, root) for dep in deps),
        params=tuple(params),
        outs=tuple(relative(out, root) for out in stage.outs),
    )


def relative(entry: Any, root: Path) -> str:
    """Return where an entry of DVC's lies in the project, or the whole path of one outside."""
    path = Path(entry.fs_path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _changes(entry: Any, root: Path) -> Iterator[Change]:
    """Yield what an entry of `dvc status` says of a stage.

    Its paths are relative to the working folder where that lies in the project.
    """
    if not isinstance(entry, Mapping):  # "changed command", "always changed"
        yield Change("command", str(entry), "modified")
        return
    base = Path.cwd() if Path.cwd().is_relative_to(root) else root
    for title, values in entry.items():
        for subject, how in values.items():
            if isinstance(how, Mapping):  # a params file: what became of each key
                for key, what in how.items():
                    yield Change("param", str(key), str(what))
            else:
                path = os.path.relpath(base / subject, root)
                outside = path.startswith("..")
                yield Change(_KINDS[title], str(subject) if outside else path, str(how))
