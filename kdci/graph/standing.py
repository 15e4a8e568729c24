"""Whether the result of a node is in place, as its card and its parents' cards say.

Params, the parents' contents and the code: what made an artifact must be what is there now.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdci.errors import KdciError
from kdci.graph.build import Graph
from kdci.graph.node import Node
from kdci.store.artifacts import open_artifact, read_card


def card_at(path: Path, kind: str) -> dict[str, Any] | None:
    """Return the card of an artifact; None: there is none that can be read."""
    try:
        return read_card(path, kind=kind)
    except (KdciError, OSError):
        return None


def is_in_place(graph: Graph, node: Node) -> bool:
    """Tell whether a node's artifact is there, made with these params, of these parents.

    Parents are compared by their cards, as far as they are in place themselves.
    """
    card = card_at(node.artifact, node.kind)
    if card is None or card["params"] != graph.values(node):
        return False
    contents = card.get("parents", {})
    return contents.keys() == node.parents.keys() and not has_other_parents(node, contents)


def has_other_parents(node: Node, contents: Mapping[str, str]) -> bool:
    """Tell whether a parent in place is another than ``contents`` has, a hash by role."""
    for role in node.parents.keys() & contents.keys():
        card = card_at(node.parents[role].path, node.parents[role].kind)
        if card is not None and card["content"] != contents[role]:
            return True
    return False


def difference(graph: Graph, node: Node, code: str) -> str | None:
    """Return why what is in place is not what a node would make now; None: it is, every byte.

    All files are hashed again if the card says the right things.

    Args:
        graph: The graph.
        node: Which node.
        code: Fingerprint of its code.
    """
    try:
        card = read_card(node.artifact, kind=node.kind)
        parents = {
            role: str(read_card(parent.path, kind=parent.kind)["content"])
            for role, parent in node.parents.items()
        }
        stated = {
            "params": (card.get("params"), graph.values(node)),
            "parents": (card.get("parents"), parents),
            "code": (card.get("code", {}).get("hash"), code),
        }
        differing = [name for name, (there, wanted) in stated.items() if there != wanted]
        if differing:
            return f"was made with other {' and '.join(differing)}"
        open_artifact(node.artifact, kind=node.kind)
    except (KdciError, OSError) as error:
        return " ".join(str(error).split())
    return None
