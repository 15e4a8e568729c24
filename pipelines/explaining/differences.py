"""What differs from the last run, with both values: DVC's status names it only.

The old values are those of ``dvc.lock``, the new ones those of the files, of params.yaml, and of
cells.yaml, which has a stage's code as a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kdci.config.params_file import read_yaml
from kdci.graph.cells import CELLS_FILE
from pipelines.explaining.forecast import Fate, forecast, makers
from pipelines.graph.dag import Change, Dag, relative
from pipelines.params.spelled_out import in_one_line, values_at

LOCK_FILE = "dvc.lock"
ABSENT = "(absent)"
CODE = "code."
"""Before the names of code in cells.yaml."""
_HASH_CHARS = 7


@dataclass(frozen=True)
class Difference:
    """One difference, told in full.

    Attributes:
        kind: `param`, `code`, `file`, `artifact` (that another stage makes), `output`, `command`,
            or `new`: dvc.lock knows nothing of the stage.
        subject: Dotted key, name of code in cells.yaml, or path; "" where the kind says it all.
        how: `modified`, `new`, `deleted`, ... in DVC's words.
        old: Value or shortened hash at the last run.
        new: That of now.
        made_by: Of an artifact: the stages that make it.
    """

    kind: str
    subject: str = ""
    how: str = ""
    old: str = ""
    new: str = ""
    made_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A project beside its last run.

    Attributes:
        lock: The stages' entries of dvc.lock, by name.
        params: The tree of params.yaml.
        contents: Where DVC keeps the contents of past results, by hash.
        past_runs: Where it keeps past executions of stages, by what they were made from.
        found: Differences of the stages that have any, by name.
        fates: What would become of each stage.
    """

    lock: Mapping[str, Mapping[str, Any]]
    params: Mapping[str, Any]
    contents: Path
    past_runs: Path
    found: Mapping[str, tuple[Difference, ...]] = field(default_factory=dict)
    fates: Mapping[str, Fate] = field(default_factory=dict)


def compare(root: Path, dag: Dag) -> Comparison:
    """Return what differs for the stages of the whole ``dag`` that changed, and what comes of all.

    Raises:
        UserError: params.yaml can not be read.
    """
    from dvc.repo import Repo

    entries, params = lock_entries(root), read_yaml(root / "params.yaml")
    cells = root / CELLS_FILE
    tracked = read_yaml_quickly(cells) if cells.exists() else {}
    with Repo(str(root), _wait_for_lock=True) as repo:
        caches = Path(repo.cache.local.path), Path(repo.stage_cache.cache_dir)
        with repo.lock:
            known = {stage.name: stage for stage in repo.index.stages if stage.name in dag.changes}
            hashes = {name: _hashes(known[name], dag.changes[name], root) for name in known}
            fates = forecast(repo, dag)
    now = {**tracked, **params}
    found = {
        name: tuple(_differences(dag, name, entries.get(name), now, hashes[name]))
        for name in hashes
    }
    return Comparison(entries, params, *caches, found, fates)


def lock_entries(root: Path) -> dict[str, Any]:
    """Return the entries of dvc.lock by stage."""
    file = root / LOCK_FILE
    return read_yaml_quickly(file).get("stages") or {} if file.is_file() else {}


def read_yaml_quickly(file: Path) -> dict[str, Any]:
    """Read YAML that DVC wrote, with the parser in C where there is one."""
    return dict(YAML(typ="safe").load(file.read_text(encoding="utf-8")) or {})


def locked_params(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params blocks of an entry of dvc.lock, of all files, by dotted key."""
    blocks = (entry.get("params") or {}).values()
    return {key: value for block in blocks for key, value in (block or {}).items()}


def _hashes(stage: Any, changes: Iterable[Change], root: Path) -> dict[str, str]:
    """Return the hashes of what changed as it is now; what is not there has none."""
    paths = {root / change.subject for change in changes if change.kind in ("dep", "out")}
    return {
        relative(entry, root): str(entry.get_hash().value)
        for entry in [*stage.deps, *stage.outs]
        if Path(entry.fs_path) in paths and entry.exists
    }


# -- wording ----------------------------------------------------------------------------------


def _differences(
    dag: Dag,
    name: str,
    entry: Mapping[str, Any] | None,
    params: Mapping[str, Any],
    hashes: Mapping[str, str],
) -> Iterator[Difference]:
    """Put both values beside each change of a stage, of dvc.lock and of now."""
    if entry is None:
        yield Difference("new")  # all it depends on is, and saying so tells nothing
        return
    for change in dag.changes[name]:
        if change.kind == "param":
            yield from _of_param(change, locked_params(entry), values_at([change.subject], params))
        elif change.kind == "command":
            command = dag.stages[name].command
            yield Difference("command", "", change.how, str(entry.get("cmd")), command)
        else:
            yield _of_path(change, dag, name, entry, hashes)


def _of_param(
    change: Change, before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[Difference]:
    key = change.subject
    if key.startswith(CODE):
        was, became = (str(tree.get(key, ""))[:_HASH_CHARS] for tree in (before, now))
        yield Difference("code", key.removeprefix(CODE), change.how, was, became)
        return
    old, new = (dict(_leaves(key, tree.get(key, ABSENT))) for tree in (before, now))
    for leaf in dict.fromkeys([*old, *new]):
        was, became = old.get(leaf, ABSENT), new.get(leaf, ABSENT)
        # A block that came or went is told by its leaves.
        if was != became and not (leaf == key and (len(old) > 1 or len(new) > 1)):
            yield Difference("param", leaf, change.how, was, became)


def _of_path(
    change: Change, dag: Dag, name: str, entry: Mapping[str, Any], hashes: Mapping[str, str]
) -> Difference:
    path = change.subject
    listed = [*(entry.get("deps") or ()), *(entry.get("outs") or ())]
    recorded = {one["path"]: str(one.get("md5", "")) for one in listed}
    old, new = recorded.get(path, "")[:_HASH_CHARS], hashes.get(path, "")[:_HASH_CHARS]
    if change.kind == "out":
        return Difference("output", path, change.how, old, new)
    made_by = makers(dag, name, path)
    return Difference("artifact" if made_by else "file", path, change.how, old, new, made_by)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, in_one_line(value)
