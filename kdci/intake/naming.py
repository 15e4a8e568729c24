"""Names of foreign parameters turned into those of a backbone here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "teacher.")
"""What wrappers (data parallelism, compilation, training frameworks) put before every name."""
COUNTERS = re.compile(r"(^|\.)(total_ops|total_params)$")
"""What profilers leave in a state dict."""
_HEADS = ("linear", "fc", "classifier", "head", "classifier.1", "head.fc", "last_linear")
"""Names of the last linear layer: public checkpoints, torchvision, timm."""
_HEAD = re.compile(rf"^({'|'.join(map(re.escape, _HEADS))})\.(weight|bias)$")
_SHORTCUT = re.compile(r"\.(downsample|shortcut)\.")


@dataclass(frozen=True)
class Naming:
    """How foreign names are read.

    Attributes:
        targets: Name in the backbone, by foreign name.
        prefixes: What was taken from the start of every name, outermost first.
        renamed: How many differ otherwise.
        left_over: Foreign names without a place.
        missing: Names of the backbone that nothing was found for.
    """

    targets: dict[str, str]
    prefixes: tuple[str, ...]
    renamed: int
    left_over: tuple[str, ...]
    missing: tuple[str, ...]


def match_names(found: Iterable[str], expected: Collection[str]) -> Naming:
    """Find the place of every foreign name.

    Args:
        found: Names in the checkpoint.
        expected: Names in the backbone.
    """
    names = [name for name in found if not COUNTERS.search(name)]
    prefixes = _prefixes(names, expected)
    skip = sum(map(len, prefixes))
    # A name of the backbone's own is not given away to another spelling of it.
    targets = {name: name[skip:] for name in names if name[skip:] in expected}
    left_over = []
    for name in names:
        free = (s for s in _spellings(name[skip:]) if s in expected and s not in targets.values())
        place = targets.get(name) or next(free, None)
        if place is None:
            left_over.append(name)
        else:
            targets[name] = place
    filled = set(targets.values())
    return Naming(
        targets,
        prefixes,
        renamed=sum(name[skip:] != place for name, place in targets.items()),
        left_over=tuple(sorted(left_over)),
        missing=tuple(name for name in expected if name not in filled),
    )


def _prefixes(names: list[str], expected: Collection[str]) -> tuple[str, ...]:
    """Return the wrappers' prefixes that all names share, unless the backbone has them too."""
    prefixes: list[str] = []
    while names and not set(names) <= set(expected):
        shared = next((p for p in PREFIXES if all(n.startswith(p) for n in names)), None)
        if shared is None:
            break
        prefixes.append(shared)
        names = [name.removeprefix(shared) for name in names]
    return tuple(prefixes)


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as other code spells it."""
    head = _HEAD.match(name)
    if head is not None:
        yield from (f"{other}.{head[2]}" for other in _HEADS if other != head[1])
    if _SHORTCUT.search(name):
        for other in ("shortcut", "downsample"):
            yield _SHORTCUT.sub(f".{other}.", name)
