"""Figures of what is inside a dictionary: its prototypes one by one, and what students weigh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdci.reporting.evidence import DictionaryView, Lambdas, PoolView
from kdci.reporting.figures import style
from kdci.reporting.text.wording import number
from kdci.store.layout import Cell
from kdci.substitution.registry import title_of

MAX_PROTOTYPES = 20
_NUM_TILES = 8

_COLUMN_TITLES = 0.3
_BAR_LEFT, _BAR_WIDTH, _BAR_ROOM = 0.85, 0.75, 0.5
_CLASSES_LEFT = 2.3
_SPREAD_RIGHT = 4.05
_TILES_LEFT = 4.3
_PITCH = (style.RIGHT - _TILES_LEFT) / _NUM_TILES
_TILE = _PITCH - 0.05
_LINE = 0.145
"""Height of a line of small text: three of them fit beside a tile."""

_LINE_COLORS = (
    "#e2711d",
    "#3d5f85",
    "#4f9a6b",
    "#b23a6b",
    "#c9a227",
    "#5aa7b8",
    "#8a6fb0",
    "#7a4b2a",
    "#1f2933",
    "#9aa53b",
)
_AXIS_ROOM, _EDGE, _LABELS = 0.3, 0.75, 0.85
_PANEL_HEIGHTS = (0.2, 2.8, 0.3)
"""Above the lines, of the lines, and below them."""


def prototypes(view: DictionaryView, pool: PoolView | None, class_names: Sequence[str]) -> Figure:
    """Draw a row per prototype, the most frequent first: P(z), classes, spread, nearest images.

    Args:
        view: With the facts that ``kdci.deconfounding.dictionary_quality`` states.
        pool: What it was made from; None where that is not there.
        class_names: Of the own teacher.
    """
    class_names = view.names(class_names)
    if pool is not None and len(pool.images) != view.facts["num_predictions"]:
        pool = None  # another one by now, as where a grid is half run again
    if view.adopted:
        pool = None  # its images were those of another teacher
    order = np.argsort(-view.proportions, kind="stable")[:MAX_PROTOTYPES]
    pitch = max(_TILE, 3 * _LINE) + 0.12
    height = style.HEADING + _COLUMN_TITLES + len(order) * pitch + 0.05
    count, facts = len(view.proportions), view.facts
    some = "" if len(order) == count else f": the {len(order)} most frequent of {count}"
    figure = style.headed(
        height,
        f"Prototypes of {view.title}{some}",
        f"{count} of {facts['requested']} prototypes, effectively {number(facts['effective_n'])}, "
        f"of {facts['num_predictions']:,} images; classes of {facts['teacher']}: "
        f"purity {number(100 * facts['purity'])} %, NMI {number(facts['nmi'], 2)}",
    )
    sheet = style.canvas(figure)
    _column_titles(sheet, with_images=pool is not None)
    right = _SPREAD_RIGHT if pool is None else style.RIGHT
    for row, index in enumerate(order.tolist()):
        top = style.HEADING + _COLUMN_TITLES + row * pitch
        if row:
            sheet.plot([style.MARGIN, right], [top - 0.06] * 2, color=style.FAINT, linewidth=0.6)
        _describe(sheet, view, index, top + _TILE / 2, class_names)
        if pool is not None:
            _nearest(sheet, pool, facts["nearest_rows"][index], top)
    if pool is None:
        _no_images(
            sheet, style.HEADING + _COLUMN_TITLES, len(order) * pitch - 0.12, adopted=view.adopted
        )
    return figure


def _column_titles(sheet: Axes, *, with_images: bool) -> None:
    y = style.HEADING + 0.18
    style.note(sheet, _BAR_LEFT, y, "P(z)", va="bottom")
    style.note(sheet, _CLASSES_LEFT, y, "classes", va="bottom")
    style.note(sheet, _SPREAD_RIGHT, y, "mean distance", ha="right", va="bottom")
    if with_images:
        style.note(sheet, _TILES_LEFT, y, "images nearest to z", va="bottom")


def _describe(
    sheet: Axes, view: DictionaryView, index: int, middle: float, class_names: Sequence[str]
) -> None:
    """Write a prototype's name, P(z), classes and spread, around the height ``middle``."""
    sheet.text(style.MARGIN, middle, f"z{index + 1}", size=10, weight="bold", va="center")
    share = float(view.proportions[index])
    length = _BAR_WIDTH * share / float(view.proportions.max())
    sheet.barh(middle, length, height=0.2, left=_BAR_LEFT, color=style.POOL, linewidth=0)
    end = _BAR_LEFT + length + 0.06
    sheet.text(end, middle, f"{100 * share:.1f} %", size=style.SMALL, va="center")
    classes = view.facts["top_classes"][index]
    for line, entry in enumerate(classes):
        y = middle + (line - (len(classes) - 1) / 2) * _LINE
        text = f"{style.short(class_names[entry['class']])}  {_percent(entry['share'])}"
        look: dict[str, Any] = {}
        if line == 0:
            look = {"color": style.INK, "weight": "bold", "size": style.SMALL + 0.5}
        style.note(sheet, _CLASSES_LEFT, y, text, va="center", **look)
    text = number(float(view.facts["spread"][index]), 2)
    sheet.text(_SPREAD_RIGHT, middle, text, size=8, ha="right", va="center")


def _percent(share: float) -> str:
    """Return a share in percent, with a decimal where it is nearly none or nearly all."""
    decimals = 0 if share == 1 or 0.01 <= share < 0.995 else 1
    return f"{100 * share:.{decimals}f} %"


def _nearest(sheet: Axes, pool: PoolView, rows: Sequence[int], top: float) -> None:
    for column in range(_NUM_TILES):
        image = pool.images[rows[column]] if column < len(rows) else None
        style.show_image(sheet, image, _TILES_LEFT + column * _PITCH, top, _TILE)


def _no_images(sheet: Axes, top: float, height: float, *, adopted: bool) -> None:
    width = style.RIGHT - _TILES_LEFT
    style.empty_tile(sheet, _TILES_LEFT, top, width, height)
    note = (
        "The dictionary of another pre-trained model:\nits images are not in this pool."
        if adopted
        else "The pool that it was made from is not there."
    )
    middle = _TILES_LEFT + width / 2
    sheet.text(middle, top + height / 2, note, color=style.MUTED, ha="center", va="center")


def lambda_over_training(
    cell: Cell, points: Lambdas, proportions_N: NDArray[np.float32] | None = None
) -> Figure:
    """Draw a student's mean lambda_i over its steps, and P(z_i) at the right edge.

    Args:
        cell: The student.
        points: Of it. All prototypes but the ten largest are drawn in one colour.
        proportions_N: P(z_i) of its dictionary; (N,). None where it is not known.
    """
    figure = style.headed(
        style.HEADING + sum(_PANEL_HEIGHTS),
        f"What KDCI weighs: {title_of(cell.method)}, {cell.teacher} to {cell.student}",
        "Mean lambda over held-out substitutes, percent, over distillation steps; "
        f"{cell.replicate}; dashed: all prototypes alike",
    )
    steps, lambdas_SN = _table(points)
    last_N = lambdas_SN[-1]
    if proportions_N is not None and len(proportions_N) != len(last_N):
        proportions_N = None  # of another dictionary, as where a grid is half run again
    shares_N = last_N if proportions_N is None else 100 * proportions_N.astype(float)
    largest = np.argsort(-shares_N, kind="stable").tolist()
    named = dict(zip(largest, _LINE_COLORS, strict=False))
    width = style.WIDTH - 2 * style.MARGIN - _AXIS_ROOM - _EDGE - _LABELS
    top, left = style.HEADING + _PANEL_HEIGHTS[0], style.MARGIN + _AXIS_ROOM
    axes = style.place(figure, left, top, width, _PANEL_HEIGHTS[1])
    edge = style.place(figure, left + width, top, _EDGE, _PANEL_HEIGHTS[1])
    for index in reversed(largest):
        look: dict[str, Any] = {"color": named.get(index, style.POOL), "clip_on": False}
        values, shown = lambdas_SN[:, index], index in named
        mark = "o" if len(steps) == 1 else ""
        width = 1.8 if shown else 0.7
        axes.plot(steps, values, linewidth=width, marker=mark, markersize=4, **look)
        if shown:  # the line's end is joined with P(z)
            ends = [last_N[index], shares_N[index]]
            edge.plot([0.03, 0.9], ends, linewidth=0.6, linestyle=(0, (1, 2)), **look)
        edge.plot([0.9], shares_N[index], marker="D", markersize=4 if shown else 2.5, **look)
    drawn = [*lambdas_SN.flatten().tolist(), *shares_N.tolist()]
    low, high = min(drawn), max(drawn)
    room = max(0.06 * (high - low), 0.5)
    axes.set(xlim=(0, steps[-1]), ylim=(max(low - room, 0), high + room))
    style.value_axis(axes)
    even = 100 / len(last_N)
    axes.axhline(even, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
    edge.set(xlim=(0, 1), ylim=axes.get_ylim())
    style.blank(edge)
    edge.patch.set_visible(False)
    _edge_labels(edge, shares_N, named, known=proportions_N is not None)
    return figure


def _table(points: Lambdas) -> tuple[list[int], NDArray[np.float64]]:
    """Return steps (S,) and lambda in percent (S, N).

    A dictionary that was built anew on the way may have had more prototypes before: N is that
    of the last step, and what came before with another N is left out.
    """
    count = len(points[-1][1])
    kept = [(step, values) for step, values in points if len(values) == count]
    table_SN = 100 * np.array([values for _, values in kept], dtype=np.float64)
    return [step for step, _ in kept], table_SN


def _edge_labels(
    edge: Axes, shares_N: NDArray[np.float64], named: dict[int, str], *, known: bool
) -> None:
    low, high = edge.get_ylim()
    gap = (high - low) * 0.15 / _PANEL_HEIGHTS[1]
    heights = style.spread([float(shares_N[index]) for index in named], gap)
    for (index, color), height in zip(named.items(), heights, strict=True):
        text = f"z{index + 1}  {number(float(shares_N[index]))} %"
        style.beside(edge, text, 0.98, height, 4, color=color, weight="bold", size=8)
    title, inside = "P(z)" if known else "lambda", edge.transAxes
    style.note(edge, 1.02, 1.04, title, va="bottom", transform=inside)
    if len(shares_N) > len(named):
        others = f"grey: {len(shares_N) - len(named)} others"
        style.note(edge, 1.02, -0.03, others, va="top", transform=inside)
