"""The look of `kdci check` at what DVC reads of params.yaml by itself.

Stages take a value that the file lacks from the defaults. DVC knows no defaults: a block that a
stage depends on has to stand in the file, or DVC stops before any stage runs. A file of an earlier
version may lack one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.errors import KdciError, UserError
from kdci.graph.build import graph_of
from kdci.store.layout import Layout

_ABSENT = object()


def check_spelled_out(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Yield each key that DVC needs and that stands in no line of params.yaml.

    A project without the one file or the other has nothing for DVC to read.
    """
    file = layout.root / "params.yaml"
    if not (file.is_file() and (layout.root / "dvc.yaml").is_file()):
        return
    keys = [
        key for node in graph_of(params, layout.root).nodes.values() for key in node.blocks.values()
    ]
    found = values_at(keys, read_yaml(file))
    for key, value in values_at(keys, params.model_dump(mode="json", by_alias=True)).items():
        if key not in found:
            what = "is not in params.yaml, and DVC needs it spelled out"
            yield UserError(key, what, f"add {key.rpartition('.')[2]}: {in_one_line(value)}")


def values_at(keys: Iterable[str], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a params tree at dotted keys; those it lacks are left out."""
    found = {}
    for key in keys:
        node: Any = tree
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is not _ABSENT:
            found[key] = node
    return found


def in_one_line(value: Any) -> str:
    """Return a value as a line of params.yaml would have it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {in_one_line(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(in_one_line(part) for part in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
