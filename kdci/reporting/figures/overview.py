"""The figure for a README: the pools at a glance, and what KDCI changes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdci.reporting.comparison import Comparison
from kdci.reporting.evidence import PoolView
from kdci.reporting.figures import style
from kdci.reporting.figures.arms import axis_limits
from kdci.reporting.figures.charts import class_bars
from kdci.reporting.figures.images import class_tile, frequent_to_rare
from kdci.reporting.results import Part
from kdci.reporting.statistics import estimate
from kdci.reporting.text.wording import budget_text, certainty_text, number, signed, verdict
from kdci.substitution.registry import title_of

_TOP = 1.12
_BLOCK = 1.95
_LEFT, _SPLIT = style.MARGIN + 0.32, 5.3
_RESULT = 6.15
_BARS = 0.75
_MAX_TILES = 10
_LONGEST, _CUT = 10, 8
"""Characters of a class name that fit below a tile, and of one that is cut."""


def overview(
    pools: Sequence[PoolView],
    comparisons: Sequence[Comparison],
    class_names: Sequence[str],
) -> Figure:
    """Draw for each method its pool (proportions, an image a class) and the paired result.

    Args:
        pools: One a method, in the order of ``comparisons``; a method may have none yet.
        comparisons: Those of one teacher-student pair and budget.
        class_names: Of the teacher's classes.
    """
    first = comparisons[0]
    teacher, student, budget = first.group
    points = "accuracy" if first.measure == "accuracy" else "agreement with the teacher"
    figure = style.headed(
        _TOP + _BLOCK * len(comparisons),
        f"Distilling {teacher} into {student} without its data{budget_text(budget)}",
        f"What each method puts in the place of the data, and what KDCI changes in {points}",
    )
    sheet = style.canvas(figure)
    images = "one random image a class"
    if len(class_names) > _MAX_TILES:
        images = f"an image of {_MAX_TILES} of {len(class_names):,}, frequent to rare"
    for x, text in (
        (style.MARGIN, f"Substitutes: share of each class (%, dashed: uniform), {images}"),
        (_RESULT, "KDCI minus vanilla, points, paired by seed"),
    ):
        style.note(sheet, x, _TOP - 0.22, text, va="center")
    by_method = {pool.method: pool for pool in pools}
    gains = (gains for one in comparisons for gains in one.gains.values())
    limits = axis_limits(gains, room=0.08)
    for index, one in enumerate(comparisons):
        top = _TOP + _BLOCK * index
        sheet.text(style.MARGIN, top + 0.02, title_of(one.method), size=11, weight="bold", va="top")
        if one.method in by_method:
            pool = by_method[one.method]
            _pool_block(figure, sheet, pool, class_names, top + 0.26)
            shift = f"total variation from uniform {pool.total_variation:.2f}"
            style.note(sheet, _SPLIT, top + 0.06, shift, ha="right", va="top")
        _result_block(figure, sheet, one, top, limits)
    return figure


def _pool_block(
    figure: Figure, sheet: Axes, pool: PoolView, class_names: Sequence[str], top: float
) -> None:
    bars = style.place(figure, _LEFT, top, _SPLIT - _LEFT, _BARS)
    class_bars(bars, pool, class_names, mark_missing=False)
    bars.set_xticks([])
    bars.set_xlabel("")
    font_size = style.SMALL if max(map(len, class_names)) <= 6 else 5.5
    # Above ten classes the bars are sorted, and so are the tiles, from frequent to rare.
    classes = frequent_to_rare(pool, _MAX_TILES).tolist()
    pitch = (_SPLIT - _LEFT) / len(classes)
    for column, class_index in enumerate(classes):
        x, y, size = _LEFT + pitch * column + 0.02, top + _BARS + 0.07, pitch - 0.04
        class_tile(sheet, pool, class_index, x, y, size)
        name = style.short(class_names[class_index], _LONGEST, cut=_CUT)
        middle = x + size / 2
        style.note(sheet, middle, y + size + 0.04, name, size=font_size, ha="center", va="top")


_COLORS: dict[Part, str] = {"backbone": style.KDCI, "compensated": style.COMPENSATED}


def _result_block(
    figure: Figure, sheet: Axes, one: Comparison, top: float, limits: tuple[float, float]
) -> None:
    _result_words(sheet, one, top)
    if one.difference is None:
        return
    axes = style.place(figure, _RESULT, top + 0.78, style.RIGHT - _RESULT, 0.6)
    style.gain_axis(axes)
    for height, (part, color) in zip((1, 0), _COLORS.items(), strict=True):
        each = list(one.gains[part].values())
        paired = estimate(each)
        if paired is None:
            continue
        if paired.interval:
            axes.plot(paired.interval, [height] * 2, color=color, linewidth=2.2)
        axes.plot(each, [height + 0.36] * len(each), "|", color=color, markersize=4, alpha=0.9)
        axes.plot(paired.mean, height, "o", color=color, markersize=6, markeredgecolor="white")
        deployed = part == one.deploy
        look = {"color": style.INK, "weight": "bold"} if deployed else {"color": style.MUTED}
        style.beside(axes, part, 0, height, -6, ha="right", size=6.5, **look)
    axes.set(xlim=limits, ylim=(-0.6, 1.8), yticks=[])


def _result_words(sheet: Axes, one: Comparison, top: float) -> None:
    paired = one.difference
    if paired is None or one.vanilla is None or one.mean is None:
        style.note(sheet, _RESULT, top + 0.02, "not run", size=11, va="top")
        return
    words, gained = verdict(paired), signed(paired.mean).translate(style.MINUS)
    shown = words.startswith("KDCI")
    color = (style.KDCI if paired.mean > 0 else style.WRONG) if shown else style.INK
    sheet.text(_RESULT, top + 0.02, gained, size=15, weight="bold", color=color, va="top")
    change = f"{number(one.vanilla.mean)} \N{RIGHTWARDS ARROW} {number(one.mean.mean)} %"
    sheet.text(style.RIGHT, top + 0.06, change, size=9, ha="right", va="top")
    certainty = certainty_text(paired).translate(style.MINUS)
    style.note(sheet, _RESULT, top + 0.35, certainty, va="top")
    style.note(sheet, _RESULT, top + 0.51, words, color=style.INK, va="top")
