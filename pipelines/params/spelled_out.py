"""The look of `kdci check` at what DVC reads of params.yaml by itself.

Stages take a value that the file lacks from the defaults. DVC knows no defaults: a block that a
stage depends on has to stand in the file, or DVC stops before any stage runs. A file of an earlier
version may lack one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    found, whole = read_yaml(file), params.model_dump(mode="json", by_alias=True)
    graph = graph_of(params, layout.root)
    for key in dict.fromkeys(key for node in graph.nodes.values() for key in node.blocks.values()):
        if _at(found, key) is _ABSENT:
            what = "is not in params.yaml, and DVC needs it spelled out"
            yield UserError(key, what, f"add {_line(key, _at(whole, key))}")


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree


def _line(key: str, value: Any) -> str:
    """Return the last part of a key with its value, as a line of YAML."""
    return f"{key.rpartition('.')[2]}: {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_flow(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(part) for part in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
