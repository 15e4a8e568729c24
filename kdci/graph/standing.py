"""Whether the result of a node is in place, as its card and its parents' cards say.

Params, the parents' contents and the code: what made an artifact must be what is there now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.graph.build import Graph, graph_of
from kdci.graph.cells import sources_of
from kdci.graph.node import Node
from kdci.store.artifacts import open_artifact, read_card

_NOTHING = object()

ReadCard = Callable[[Path, str], "dict[str, Any] | None"]
"""Returns the card of an artifact by its folder and kind; None: there is none."""


def card_at(path: Path, kind: str) -> dict[str, Any] | None:
    """Return the card of an artifact; None: there is none that can be read."""
    try:
        return read_card(path, kind=kind)
    except (KdciError, OSError):
        return None


def is_in_place(graph: Graph, node: Node, read: ReadCard = card_at) -> bool:
    """Tell whether a node's artifact is there, made with these params, of these parents.

    Parents are compared by their cards, as far as they are in place themselves.

    Args:
        graph: The graph.
        node: Which node.
        read: Reads cards.
    """
    card = read(node.artifact, node.kind)
    if card is None or _has_other_params(graph, node, card):
        return False
    contents = card.get("parents", {})
    return contents.keys() == node.parents.keys() and not has_other_parents(node, contents, read)


def _has_other_params(graph: Graph, node: Node, card: Mapping[str, Any]) -> bool:
    """Tell whether a card has other values than are asked for; an old one may have further ones."""
    stated = card.get("params", {})
    return any(_stated(stated, key) != value for key, value in graph.values(node).items())


def _stated(params: Mapping[str, Any], key: str) -> Any:
    """Return the value at a key, which may be part of a block that is stated as a whole."""
    block, _, field = key.rpartition(".")
    return params.get(key, (params.get(block) or {}).get(field, _NOTHING))


def has_other_parents(node: Node, contents: Mapping[str, str], read: ReadCard = card_at) -> bool:
    """Tell whether a parent in place is another than ``contents`` has, a hash by role."""
    for role in node.parents.keys() & contents.keys():
        card = read(node.parents[role].path, node.parents[role].kind)
        if card is not None and card["content"] != contents[role]:
            return True
    return False


def difference(graph: Graph, node: Node, code: str | None) -> str | None:
    """Return why what is in place is not what a node would make now; None: it is, every byte.

    All files are hashed again if the card says the right things.

    Args:
        graph: The graph.
        node: Which node.
        code: Fingerprint of its code; None: it is not compared.
    """
    try:
        card = read_card(node.artifact, kind=node.kind)
        parents = {
            role: str(read_card(parent.path, kind=parent.kind)["content"])
            for role, parent in node.parents.items()
        }
        differs = {
            "params": _has_other_params(graph, node, card),
            "parents": card.get("parents") != parents,
            "code": code is not None and card.get("code", {}).get("hash") != code,
        }
        differing = [name for name, is_other in differs.items() if is_other]
        if differing:
            return f"was made with other {' and '.join(differing)}"
        open_artifact(node.artifact, kind=node.kind)
    except (KdciError, OSError) as error:
        return " ".join(str(error).split())
    return None


def differences(root: Path, names: Iterable[str]) -> dict[str, str | None]:
    """Return by node why its result is not what params.yaml and the code ask for now.

    Args:
        root: The project folder; its own copy of the code comes before the installed one.
        names: Of nodes.

    Returns:
        By name: what differs; None: the result is in place, with every byte.
    """
    try:
        graph = graph_of(load_params(root / "params.yaml"), root)
    except KdciError as error:  # it is being edited
        return dict.fromkeys(names, str(error))
    sources = sources_of(graph)
    found: dict[str, str | None] = {}
    for name in names:
        node = graph.nodes.get(name)
        found[name] = (
            "the params no longer ask for it"
            if node is None
            else difference(graph, node, sources.fingerprint(node.code))
        )
    return found
