"""The figure for a README: the pools at a glance, and what KDCI changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdci.reporting.comparison import Comparison, differences
from kdci.reporting.evidence import PoolView
from kdci.reporting.figures.charts import class_bars
from kdci.reporting.figures.images import pick
from kdci.reporting.figures.style import (
    COMPENSATED,
    INK,
    KDCI,
    MARGIN,
    MINUS,
    MUTED,
    SMALL,
    WIDTH,
    WRONG,
    canvas,
    empty_tile,
    heading,
    place,
    short,
    show_image,
    signed_tick,
)
from kdci.reporting.results import Part, Row
from kdci.reporting.statistics import Estimate
from kdci.reporting.text.wording import (
    budget_text,
    interval_text,
    number,
    signed,
    verdict,
)
from kdci.substitution.registry import title_of

_TOP = 1.12
_BLOCK = 1.95
_LEFT, _SPLIT = MARGIN + 0.32, 5.3
_RESULT = 6.15
_BARS = 0.75
_MAX_TILES = 10
_LONGEST, _CUT = 10, 8
"""Characters of a class name that fit below a tile, and of one that is cut."""


def overview(
    pools: Sequence[PoolView],
    comparisons: Sequence[Comparison],
    rows: Sequence[Row],
    class_names: Sequence[str],
) -> Figure:
    """Draw for each method its pool (proportions, an image a class) and the paired result.

    Args:
        pools: One a method, in the order of ``comparisons``; a method may have none yet.
        comparisons: Those of one teacher-student pair and budget.
        rows: Its results.
        class_names: Of the teacher's classes.
    """
    figure = Figure(figsize=(WIDTH, _TOP + _BLOCK * len(comparisons)))
    first = comparisons[0]
    points = "accuracy" if first.measure == "accuracy" else "agreement with the teacher"
    heading(
        figure,
        f"Distilling {first.teacher} into {first.student} without its data"
        + budget_text(first.budget),
        f"What each method puts in the place of the data, and what KDCI changes in {points}",
    )
    sheet = canvas(figure)
    images = "one random image a class"
    if len(class_names) > _MAX_TILES:
        images = f"an image of {_MAX_TILES} of {len(class_names):,}, frequent to rare"
    for x, text in (
        (MARGIN, f"Substitutes: share of each class (%, dashed: uniform), {images}"),
        (_RESULT, "KDCI minus vanilla, points, paired by seed"),
    ):
        sheet.text(x, _TOP - 0.22, text, size=SMALL, color=MUTED, va="center")
    by_method = {pool.method: pool for pool in pools}
    limits = _limits(comparisons, rows)
    for index, one in enumerate(comparisons):
        top = _TOP + _BLOCK * index
        sheet.text(MARGIN, top + 0.02, title_of(one.method), size=11, weight="bold", va="top")
        if one.method in by_method:
            pool = by_method[one.method]
            _pool_block(figure, sheet, pool, class_names, top + 0.26)
            shift = f"total variation from uniform {pool.total_variation:.2f}"
            sheet.text(_SPLIT, top + 0.06, shift, size=SMALL, color=MUTED, ha="right", va="top")
        _result_block(figure, sheet, one, [row for row in rows if one.covers(row)], top, limits)
    return figure


def _pool_block(
    figure: Figure, sheet: Axes, pool: PoolView, class_names: Sequence[str], top: float
) -> None:
    bars = place(figure, _LEFT, top, _SPLIT - _LEFT, _BARS)
    class_bars(bars, pool, class_names, mark_missing=False)
    bars.set_xticks([])
    bars.set_xlabel("")
    num_classes = len(class_names)
    # Above ten classes the bars are sorted, and so are the tiles, from frequent to rare.
    ranks = np.linspace(0, num_classes - 1, min(num_classes, _MAX_TILES)).round().astype(int)
    order = np.arange(num_classes)
    if num_classes > _MAX_TILES:
        order = np.argsort(-pool.proportions, kind="stable")
    pitch = (_SPLIT - _LEFT) / len(ranks)
    for place_index, class_index in enumerate(order[ranks]):
        x, y, size = _LEFT + pitch * place_index + 0.02, top + _BARS + 0.07, pitch - 0.04
        chosen = pick(pool, int(class_index), 1)
        if len(chosen):
            show_image(sheet, pool.images[chosen[0]], x, y, size)
        else:
            empty_tile(sheet, x, y, size)
            middle = (x + size / 2, y + size / 2)
            sheet.text(*middle, "none", size=6.5, color=WRONG, ha="center", va="center")
        name = short(class_names[class_index], _LONGEST, cut=_CUT)
        style_size = SMALL if max(map(len, class_names)) <= 6 else 5.5
        sheet.text(
            x + size / 2, y + size + 0.04, name, size=style_size, color=MUTED, ha="center", va="top"
        )


_Parts = tuple[tuple[Part, str, str], ...]
_PARTS: _Parts = (("backbone", "backbone", KDCI), ("compensated", "compensated", COMPENSATED))


def _limits(comparisons: Sequence[Comparison], rows: Sequence[Row]) -> tuple[float, float]:
    """Return limits in points that hold every difference, every interval and zero."""
    values = [0.0]
    for one in comparisons:
        own = [row for row in rows if one.covers(row)]
        for part, _, _ in _PARTS:
            values += differences(own, one.measure, part)
            paired = _difference(one, part)
            values += paired.interval if paired and paired.interval else ()
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.3)
    return (low - room, high + room)


def _difference(one: Comparison, part: Part) -> Estimate | None:
    return one.backbone_difference if part == "backbone" else one.compensated_difference


def _result_block(
    figure: Figure,
    sheet: Axes,
    one: Comparison,
    rows: Sequence[Row],
    top: float,
    limits: tuple[float, float],
) -> None:
    _result_words(sheet, one, top)
    if one.difference is None:
        return
    axes = place(figure, _RESULT, top + 0.78, WIDTH - MARGIN - _RESULT, 0.6)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for height, (part, name, color) in zip((1, 0), _PARTS, strict=True):
        paired = _difference(one, part)
        if paired is None:
            continue
        if paired.interval:
            axes.plot(paired.interval, [height] * 2, color=color, linewidth=2.2)
        each = differences(rows, one.measure, part)
        axes.plot(each, [height + 0.36] * len(each), "|", color=color, markersize=4, alpha=0.9)
        axes.plot(paired.mean, height, "o", color=color, markersize=6, markeredgecolor="white")
        deployed = part == one.deploy
        axes.annotate(
            name,
            (0, height),
            (-6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            size=6.5,
            color=INK if deployed else MUTED,
            weight="bold" if deployed else "normal",
        )
    axes.set(xlim=limits, ylim=(-0.6, 1.8), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.xaxis.set_major_formatter(lambda value, _: signed_tick(value))


def _result_words(sheet: Axes, one: Comparison, top: float) -> None:
    paired = one.difference
    if paired is None or one.vanilla is None or one.kdci is None:
        sheet.text(_RESULT, top + 0.02, "not run", size=11, color=MUTED, va="top")
        return
    words = verdict(paired)
    shown = words.startswith("KDCI")
    sheet.text(
        _RESULT,
        top + 0.02,
        signed(paired.mean).translate(MINUS),
        size=15,
        weight="bold",
        color=(KDCI if paired.mean > 0 else WRONG) if shown else INK,
        va="top",
    )
    change = f"{number(one.vanilla.mean)} \N{RIGHTWARDS ARROW} {number(one.kdci.mean)} %"
    sheet.text(WIDTH - MARGIN, top + 0.06, change, size=9, color=INK, ha="right", va="top")
    interval = interval_text(paired).translate(MINUS)
    certainty = f"95 % interval {interval}, n = {paired.n}" if paired.interval else "n = 1"
    sheet.text(_RESULT, top + 0.35, certainty, size=SMALL, color=MUTED, va="top")
    sheet.text(_RESULT, top + 0.51, words, size=SMALL, color=INK, va="top")
