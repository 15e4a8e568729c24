"""What `dvc repro` would do with every stage, as far as that can be told without running one.

DVC's status says what differs now. Where a stage is taken from the run cache, what it leaves is
known too, and so what becomes of those after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipelines.graph.dag import Dag, Verdict, relative


class Fate(StrEnum):
    """What would become of a stage."""

    up_to_date = "up to date"
    runs = "runs"
    restored = "restored"
    """DVC takes its outputs from the cache."""
    may_run = "may run"
    """It runs unless what it is made from comes out the same."""


class _UnknownError(Exception):
    """What a stage will be made from can not be told."""


def forecast(repo: Any, dag: Dag) -> dict[str, Fate]:
    """Return what would become of each stage of the whole graph.

    Args:
        repo: An open DVC repo of its own, with the lock held; its stages are changed.
        dag: Its graph, with its status.
    """
    forecaster = _Forecaster(repo, dag)
    for name in dag.stages:
        forecaster.judge(name)
    return forecaster.fates


class _Forecaster:
    def __init__(self, repo: Any, dag: Dag) -> None:
        self.fates: dict[str, Fate] = {}
        self._cache = repo.stage_cache
        self._root = Path(repo.root_dir)
        self._dag = dag
        self._verdicts = dag.verdicts
        self._stages = {stage.name: stage for stage in repo.index.stages if stage.name}
        self._restored: list[str] = []
        """Outputs that are taken from the cache."""
        self._before: dict[str, str] = {}
        """Hashes of outputs at the last run, by path."""
        self._after: dict[str, str] = {}
        """Hashes of outputs as they will be, of those that can be told."""

    def judge(self, name: str) -> None:
        stage = self._stages[name]
        recorded = {relative(out, self._root): _hash(out) for out in stage.outs}
        self._before.update(recorded)
        fate, outs = self._judge(name, stage)
        self.fates[name] = fate
        if fate in (Fate.up_to_date, Fate.restored):
            self._after.update(outs or recorded)
        if fate is Fate.restored:
            self._restored += self._dag.stages[name].outs

    def _judge(self, name: str, stage: Any) -> tuple[Fate, dict[str, str]]:
        """Return a stage's fate, and what it will leave if that is not what it left before."""
        if self._verdicts[name] is Verdict.unchanged:
            return Fate.up_to_date, {}
        if self._has_moving_parents(name):
            return (Fate.runs if self._own_changes(name) else Fate.may_run), {}
        try:
            deps = self._future_deps(name, stage)
        except _UnknownError:
            return Fate.may_run, {}  # its parents come from the cache: it may too
        if deps is None:
            return Fate.runs, {}
        if self._is_made_from(name, stage, deps):
            if not any(change.kind == "out" for change in self._dag.changes.get(name, ())):
                return Fate.up_to_date, {}
            if stage.outs_cached():
                return Fate.restored, {}
        outs = self._in_run_cache(stage, deps)
        return (Fate.runs if outs is None else Fate.restored), outs or {}

    def _has_moving_parents(self, name: str) -> bool:
        """Tell whether something that a stage is made from will come out anew, nobody knows how."""
        upstream = self._dag.stages[name].upstream
        return any(self.fates[parent] in (Fate.runs, Fate.may_run) for parent in upstream)

    def _own_changes(self, name: str) -> bool:
        """Tell whether anything differs but what other stages are about to make anew."""
        return any(
            change.kind != "dep"
            or all(
                self.fates[maker] is Fate.up_to_date
                for maker in makers(self._dag, name, change.subject)
            )
            for change in self._dag.changes.get(name, ())
        )

    def _is_made_from(self, name: str, stage: Any, deps: Mapping[str, str]) -> bool:
        """Tell whether the stage's last run was made from the same."""
        kinds = {change.kind for change in self._dag.changes.get(name, ())}
        if kinds & {"param", "command"}:
            return False
        return all(deps[relative(dep, self._root)] == _hash(dep) for dep in _files(stage))

    def _future_deps(self, name: str, stage: Any) -> dict[str, str] | None:
        """Return the hashes of what a stage will be made from; None: some will be missing.

        Raises:
            _UnknownError: One can not be told.
        """
        differing = {change.subject for change in self._dag.changes.get(name, ())}
        found = {}
        for dep in _files(stage):
            path = relative(dep, self._root)
            value = self._made_anew(path, dep)
            if value is None and path in differing:
                if not dep.exists:
                    return None
                value = str(dep.get_hash().value)
            found[path] = value or _hash(dep)
        return found

    def _made_anew(self, path: str, dep: Any) -> str | None:
        """Return the hash of a dependency that comes from the cache; None: none does.

        Raises:
            _UnknownError: It is a folder of which something will differ.
        """
        outs = [out for out in self._restored if overlap(path, out)]
        if path in outs:
            return self._after[path]
        if any(self._after[out] != self._before[out] for out in outs):
            raise _UnknownError
        return _hash(dep) if outs and _hash(dep) else None

    def _in_run_cache(self, stage: Any, deps: Mapping[str, str]) -> dict[str, str] | None:
        """Return what a past run from the same left, by path; None: there is none to restore.

        DVC decides it in ``StageCache.restore``, which wants the dependencies in their place, and
        the project as the working folder.
        """
        from dvc.exceptions import DvcException
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        if stage.always_changed or not stage.cmd or any(out.persist for out in stage.outs):
            return None
        try:
            for dep in stage.deps:
                if hasattr(dep, "params"):
                    dep.save()
                elif deps[relative(dep, self._root)] != _hash(dep):
                    dep.hash_name = "md5"  # an older DVC's where no lock file tells of it
                    dep.hash_info = HashInfo("md5", deps[relative(dep, self._root)])
                    dep.meta = Meta(isexec=dep.meta.isexec)  # it holds the old hash too
            key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
            runs = sorted(Path(self._cache._get_cache_dir(key)).glob("*"), key=_modified)
            entry = self._cache._load_cache(key, runs[-1].name) if runs else None
        except (DvcException, OSError):
            return None
        if entry is None:
            return None
        left = {str(out["path"]): str(out.get("md5", "")) for out in entry["outs"]}
        return left if _are_in_cache(stage, left) else None


def makers(dag: Dag, name: str, path: str) -> tuple[str, ...]:
    """Return the stages that make what a stage depends on at a path."""
    return tuple(
        parent
        for parent in dag.stages[name].upstream
        if any(overlap(path, out) for out in dag.stages[parent].outs)
    )


def overlap(one: str, other: str) -> bool:
    """Tell whether one of two paths lies in the other."""
    first, second = Path(one), Path(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _are_in_cache(stage: Any, left: Mapping[str, str]) -> bool:
    """Tell whether DVC has all contents that a past run of a stage left, by path."""
    from dvc_data.hashfile.hash_info import HashInfo

    for out in stage.outs:
        digest = left.get(out.def_path)
        if not digest:
            return False
        # As DVC itself does it: what Git tracks is in DVC's cache for its runs, too.
        out.use_cache, out.obj, out.files = True, None, None
        out.hash_name = "md5"  # as above, or it is looked for among an older DVC's
        out.hash_info = HashInfo("md5", digest)
        if out.changed_cache():
            return False
    return True


def _files(stage: Any) -> list[Any]:
    return [dep for dep in stage.deps if not hasattr(dep, "params")]


def _hash(entry: Any) -> str:
    return str(entry.hash_info.value or "") if entry.hash_info else ""


def _modified(file: Path) -> float:
    return file.stat().st_mtime
