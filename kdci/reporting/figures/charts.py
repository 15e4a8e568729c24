"""Figures of what is confounded: a pool's class proportions, and the dictionary made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdci.reporting.evidence import DictionaryView, PoolView
from kdci.reporting.figures import style

MAX_NAMED = 20
MAX_ROWS = 60
"""Prototypes of a dictionary that are drawn, the most frequent ones."""
_UPRIGHT = 4
"""Longest class name, in characters, that stands upright below its bar."""
_NAMED_LEFT = style.MARGIN + 1.15


def _slanted(class_names: Sequence[str]) -> bool:
    """Whether names below bars are written, and too long to stand upright."""
    return len(class_names) <= MAX_NAMED and max(map(len, class_names)) > _UPRIGHT


def proportions(pools: Sequence[PoolView], class_names: Sequence[str]) -> Figure:
    """Draw the share of each class in each pool of a teacher against uniform."""
    figure, places = style.panels(
        len(pools),
        2,
        body=1.75,
        below=0.8 if _slanted(class_names) else 0.5,
        left=style.MARGIN + 0.25,
        gap=0.55,
        title="How far the pools are from balanced",
        subtitle=f"Share of each class as the teacher {pools[0].teacher} sees it, percent; "
        "dashed: all classes alike",
    )
    for axes, pool in zip(places, pools, strict=True):
        axes.set_title(pool.title)
        shift = f"total variation from uniform {pool.total_variation:.2f}"
        where: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
        style.note(axes, 1, 1.04, shift, **where)
        class_bars(axes, pool, class_names)
    return figure


def class_bars(
    axes: Axes, pool: PoolView, class_names: Sequence[str], *, mark_missing: bool = True
) -> None:
    """Draw a pool's class proportions in percent, with a dashed line at uniform."""
    shares = 100 * pool.proportions
    uniform = 100 / len(shares)
    named = len(shares) <= MAX_NAMED
    shares = shares if named else np.sort(shares)[::-1]
    places = np.arange(len(shares))
    axes.bar(places, shares, width=0.78 if named else 1.0, color=style.POOL, linewidth=0)
    axes.axhline(uniform, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlim=(-0.5, len(shares) - 0.5), ylim=(0, max(float(shares.max()), uniform) * 1.15))
    style.value_axis(axes)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    if not named:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(shares)} classes, most frequent first", size=style.SMALL)
        return
    _name_ticks(axes, class_names)
    for index in np.flatnonzero(shares == 0).tolist() if mark_missing else []:
        where: dict[str, Any] = {"ha": "center", "va": "bottom"}
        style.note(axes, index, uniform * 0.08, "none", size=6.5, color=style.WRONG, **where)


def _name_ticks(axes: Axes, class_names: Sequence[str]) -> None:
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    names = [style.short(name) for name in class_names]
    axes.set_xticks(range(len(names)), names, **(slant if _slanted(class_names) else {}))


def dictionary(view: DictionaryView, class_names: Sequence[str]) -> Figure:
    """Draw the prototypes z_i as a heat-map, where they are read by class, and their P(z_i).

    Rows are sorted by the class of their members; the index i is kept. Of many prototypes the
    ``MAX_ROWS`` most frequent ones are drawn.
    """
    top_class = np.asarray(view.facts["top_class"])
    class_names = view.names(class_names)
    order = np.lexsort((-view.proportions, top_class))
    frequent = np.argsort(-view.proportions, kind="stable")[:MAX_ROWS]
    order = order[np.isin(order, frequent)]
    count, some = len(order), ""
    if count < len(view.proportions):
        some = f"The {count} most frequent of "
    row_height = min(0.34, max(0.12, 5.5 / count))
    body = row_height * count
    by_class = view.facts["space"] != "features"
    slanted = by_class and _slanted(class_names)
    figure = style.headed(
        style.HEADING + style.PANEL_TITLE + body + (0.75 if slanted else 0.4),
        f"Confounder dictionary: {view.title}",
        f"{some}{len(view.proportions)} prototypes of the teacher {view.facts['teacher']}'s "
        f"{view.facts['space']} on "
        f"{view.facts['num_predictions']:,} substitution images, and how often each occurs",
    )
    top, split = style.HEADING + style.PANEL_TITLE, 6.1
    if by_class:
        named = style.place(figure, _NAMED_LEFT, top, split - _NAMED_LEFT, body)
        _heat_map(figure, named, view.prototypes[order], view.facts["space"], class_names)
        bars = style.place(figure, split + 0.35, top, style.RIGHT - split - 0.35, body)
    else:
        named = bars = style.place(figure, _NAMED_LEFT, top, style.RIGHT - _NAMED_LEFT, body)
    _proportion_bars(bars, view.proportions[order], uniform=100 / len(view.proportions))
    size = 8.5 if row_height > 0.2 else 5.5
    names = [style.short(class_names[index]) for index in top_class[order]]
    named.set_yticks(np.arange(count), names)
    named.tick_params(axis="y", length=0, labelsize=size, colors=style.INK)
    _row_numbers(named, order, size)
    return figure


def _row_numbers(axes: Axes, order: NDArray[np.int64], size: float) -> None:
    """Write z_i at the far left of each row, and what the names beside the rows mean."""
    far_left = (style.MARGIN - _NAMED_LEFT) * 72
    for row, index in enumerate(order):
        style.beside(axes, f"z{index + 1}", 0, row, far_left, size=size, color=style.MUTED)
    where: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("mostly", (0, 1), (-10, 8), ha="right", size=8, color=style.MUTED, **where)


def _heat_map(
    figure: Figure,
    axes: Axes,
    prototypes_ND: NDArray[np.float32],
    space: str,
    class_names: Sequence[str],
) -> None:
    highest = float(np.abs(prototypes_ND).max())
    probabilities = space == "probabilities"
    drawn = axes.imshow(
        prototypes_ND,
        cmap=style.SEQUENTIAL if probabilities else style.DIVERGING,
        vmin=0 if probabilities else -highest,
        vmax=1 if probabilities else highest,
        aspect="auto",
    )
    style.blank(axes)
    axes.set_title("Prototypes z")
    count, dimension = prototypes_ND.shape
    if dimension <= MAX_NAMED:
        for edge in np.arange(1, dimension):
            axes.axvline(edge - 0.5, color="white", linewidth=1.0)
        if count <= 3 * MAX_NAMED:
            for edge in np.arange(1, count):
                axes.axhline(edge - 0.5, color="white", linewidth=1.0)
        _name_ticks(axes, class_names)
        axes.tick_params(axis="x", length=0)
    box = axes.get_position()
    height = figure.get_size_inches()[1]
    scale = figure.add_axes((box.x1 - 0.16, box.y1 + 0.1 / height, 0.1, 0.07 / height))
    bar = figure.colorbar(drawn, cax=scale, orientation="horizontal")
    bar.outline.set_visible(False)
    scale.set_xticks([])
    ends = ("0", "1") if probabilities else (f"{-highest:.0f}", f"+{highest:.0f}")
    where: dict[str, Any] = {"transform": scale.transAxes, "va": "center"}
    style.note(scale, -0.06, 0.5, ends[0].translate(style.MINUS), ha="right", **where)
    style.note(scale, 1.06, 0.5, ends[1], ha="left", **where)


_BAR_SHARE = 0.78
"""Share of the width that bars take; the rest is for their values, in one column."""


def _proportion_bars(axes: Axes, proportions_N: NDArray[np.float32], *, uniform: float) -> None:
    count = len(proportions_N)
    shares = 100 * proportions_N.astype(float)
    axes.barh(np.arange(count), shares, height=0.72, color=style.POOL, linewidth=0)
    axes.axvline(uniform, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
    longest = max(float(shares.max()), uniform)
    axes.set(ylim=(count - 0.5, -0.5), xlim=(0, longest / _BAR_SHARE))
    style.blank(axes)
    axes.set_title("P(z)")
    size = 8 if count <= 24 else 5.5
    for row, share in enumerate(shares):
        text = f"{share:.1f} %"
        axes.text(longest / _BAR_SHARE, row, text, size=size, ha="right", va="center")
