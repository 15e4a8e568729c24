"""The look of `kdci check` at what DVC reads of params.yaml by itself.

Stages take a value that the file lacks from the defaults. DVC knows no defaults: a list that
`dvc.yaml` multiplies out and a block that a stage depends on have to stand in the file, or it
stops before any stage runs. A file of an earlier version may lack them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.errors import KdciError, UserError
from kdci.store.layout import Layout
from pipelines.explaining.differences import read_yaml_quickly

_TEMPLATE = re.compile(r"\$\{([^}]+)\}")
_ABSENT = object()

Tree = Mapping[str, Any]


def check_spelled_out(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Yield each key that DVC needs and that stands in no line of params.yaml.

    A project without the one file or the other has nothing for DVC to read.
    """
    file, pipeline = layout.root / "params.yaml", layout.root / "dvc.yaml"
    if not (file.is_file() and pipeline.is_file()):
        return
    found = read_yaml(file)
    whole = params.model_dump(mode="json", by_alias=True)
    stages = read_yaml_quickly(pipeline.read_text(encoding="utf-8"))["stages"]
    for key in needed_keys(stages, whole):
        value = _at(whole, key)
        if _at(found, key) is _ABSENT and value is not _ABSENT:
            what = "is not in params.yaml, and DVC needs it spelled out"
            yield UserError(key, what, f"add {_line(key, value)}")


def needed_keys(stages: Tree, values: Tree) -> list[str]:
    """Return the dotted params keys that DVC reads for the stages of a grid, each once.

    Args:
        stages: As in dvc.yaml.
        values: The params with all defaults, which say what stages there are.
    """
    needed: dict[str, None] = {}
    for stage in stages.values():
        axes = stage.get("matrix", {})
        for axis in axes.values():
            needed |= dict.fromkeys(_templates(axis))
        for point in _points(axes, values):
            for key in stage.get("params", ()):
                needed[_filled(key, point, values)] = None
            rest = {name: part for name, part in stage.items() if name not in ("matrix", "params")}
            needed |= dict.fromkeys(k for k in _templates(rest) if not k.startswith("item."))
    return list(needed)


def _points(axes: Tree, values: Tree) -> Iterator[Tree]:
    """Yield what `item` is for each stage of an entry; without axes there is one."""
    lists = [_at(values, key) for axis in axes.values() for key in _templates(axis)]
    for point in product(*lists):
        yield dict(zip(axes, point, strict=True))


def _filled(key: str, item: Tree, values: Tree) -> str:
    def value(match: re.Match[str]) -> str:
        return str(_at({**values, "item": item}, match[1]))

    return _TEMPLATE.sub(value, key)


def _templates(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        return [key for pair in node.items() for part in pair for key in _templates(part)]
    if isinstance(node, list | tuple):
        return [key for part in node for key in _templates(part)]
    return _TEMPLATE.findall(node) if isinstance(node, str) else []


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
