"""What each arm gains on vanilla: a panel a method, or a panel a known shift."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdci.deconfounding.arms import ARMS, arm_title
from kdci.reporting.comparison import ArmResult
from kdci.reporting.figures import style
from kdci.reporting.results import Replicate, grouped
from kdci.reporting.statistics import estimate
from kdci.reporting.text.tables import where

_COLUMNS = 3
_ARM_ROW = 0.2
_WIDEST = 2.0
"""The axis goes no further than so many times the largest gain: intervals beyond are cut."""


def arm_gains(results: Sequence[ArmResult], *, title: str) -> Figure:
    """Draw each arm's paired difference to vanilla with its interval, all on one axis.

    Args:
        results: Those of one teacher-student pair; a panel for each method or shift in them.
        title: Of the figure.
    """
    arms = list(dict.fromkeys(one.arm for one in results))
    by_method = grouped(results, lambda one: one.method)
    what = "points" if results[0].measure == "accuracy" else "points of agreement"
    figure, places = style.panels(
        len(by_method),
        _COLUMNS,
        body=len(arms) * _ARM_ROW + 0.1,
        below=0.42,
        left=style.MARGIN + 1.25,
        gap=0.25,
        title=title,
        subtitle=f"Paired difference of the deployed prediction to vanilla, {what}: mean and 95 % "
        "interval; ticks: replicates",
    )
    limits = axis_limits((one.paired for one in results), room=0.06, widest=_WIDEST)
    num_methods = len(by_method.keys() - {None})
    for index, (axes, of_method) in enumerate(zip(places, by_method.values(), strict=True)):
        own = {one.arm: one for one in of_method}
        axes.set_title(where(of_method[0], num_methods))
        _panel(axes, [own.get(arm) for arm in arms], limits)
        named = index % _COLUMNS == 0
        axes.set_yticks(range(len(arms)), [arm_title(arm) for arm in arms] if named else [])
    return figure


def axis_limits(
    differences: Iterable[Mapping[Replicate, float]], *, room: float, widest: float | None = None
) -> tuple[float, float]:
    """Return limits in points that hold zero, every single difference, and intervals.

    Args:
        differences: What is drawn.
        room: Share that is left empty at both ends.
        widest: Intervals are held up to so many times the largest difference; null: wholly.
    """
    values, bounds = [0.0], [0.0]
    for one in differences:
        values += one.values()
        known = estimate(one.values())
        bounds += known.interval if known and known.interval else ()
    reach = math.inf if widest is None else widest * max(map(abs, values))
    low = min(*values, max(min(bounds), -reach))
    high = max(*values, min(max(bounds), reach))
    margin = max(room * (high - low), 0.3)
    return (low - margin, high + margin)


def _panel(axes: Axes, results: Sequence[ArmResult | None], limits: tuple[float, float]) -> None:
    style.gain_axis(axes)
    for height, one in enumerate(results):
        known = one.difference if one else None
        if one is None or known is None:
            style.note(axes, 0, height, " not run", size=6.5, va="center")
            continue
        color = arm_color(one.arm)
        if known.interval:
            low, high = np.clip(known.interval, *limits)
            axes.plot([low, high], [height] * 2, color=color, linewidth=2.0)
            for bound, end, marker in ((0, low, "<"), (1, high, ">")):
                if known.interval[bound] != end:
                    axes.plot(end, height, marker, color=color, markersize=4, clip_on=False)
        each = list(one.paired.values())
        axes.plot(each, [height - 0.3] * len(each), "|", color=color, markersize=3.5, alpha=0.9)
        axes.plot(known.mean, height, "o", color=color, markersize=4.5)
    axes.set(xlim=limits, ylim=(len(results) - 0.4, -0.7))
    axes.tick_params(axis="y", length=0, pad=7, labelsize=style.SMALL, labelcolor=style.INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=style.FAINT, linewidth=0.6)


def arm_color(arm: str) -> str:
    """Return an arm's colour by its kind: KDCI, its ablations, plain remedies, both at once."""
    kind = ARMS[arm]
    if not kind.compensated:
        return style.VANILLA
    if kind.strata or kind.adjusted:
        return style.BOTH
    return style.COMPENSATED if kind.changes or kind.dictionary == "other" else style.KDCI
