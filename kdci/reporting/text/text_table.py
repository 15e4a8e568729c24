"""Cells to lines: a table in Markdown, or aligned for a terminal. The first line is the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from kdci.reporting.results import Group, grouped
from kdci.reporting.text.wording import pair_text

WIDTH = 110
"""Characters a terminal's line may have; wider tables go on below."""
_GAP = "  "


class _OfGroup(Protocol):
    @property
    def group(self) -> Group: ...


_T = TypeVar("_T", bound=_OfGroup)


def by_pair(items: Iterable[_T], table: Callable[[list[_T]], str]) -> list[str]:
    """Return for each pair and budget its name and the ``table`` of what is about it."""
    parts: list[str] = []
    for group, own in grouped(items, lambda item: item.group).items():
        parts += [f"{pair_text(group)}:", table(own)]
    return parts


def markdown(lines: Sequence[Sequence[str]], *, num_names: int | None = 1) -> str:
    """Return a Markdown table.

    Args:
        lines: Head and body, all of one length.
        num_names: How many columns, the first ones, are names and not numbers, which stand at the
            right; null: all of them.
    """
    head, *body = lines
    names = len(head) if num_names is None else num_names
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *body])


def aligned(lines: Sequence[Sequence[str]], *, width: int = WIDTH) -> list[str]:
    """Pad columns to the width of their widest cell.

    Columns that have no room left go on in a block below, beside the first column again.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        taken = sum(widths[known] + len(_GAP) for known in blocks[-1])
        if len(blocks[-1]) > 1 and taken + widths[column] > width:
            blocks.append([0])
        blocks[-1].append(column)
    text: list[str] = []
    for columns in blocks:
        text += [""] if text else []
        text += [
            _GAP.join(line[column].ljust(widths[column]) for column in columns).rstrip()
            for line in lines
        ]
    return text
