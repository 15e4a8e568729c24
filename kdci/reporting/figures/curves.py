"""Learning curves: students over their distillation steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdci.reporting.evidence import SERIES, CurvePoint
from kdci.reporting.figures import style
from kdci.reporting.results import Group, Measure, grouped
from kdci.reporting.text.wording import number, pair_text
from kdci.substitution.registry import title_of

_LABEL_ROOM, _AXIS_ROOM = 1.3, 0.3
_SERIES_COLORS = dict(zip(SERIES, (style.VANILLA, style.KDCI, style.COMPENSATED), strict=True))
_SERIES_TITLES = dict(zip(SERIES, ("vanilla", "KDCI", "compensated"), strict=True))


def learning_curves(
    points: Sequence[CurvePoint],
    *,
    measure: Measure,
    deploy: str,
    teacher_accuracy: float | None,
) -> Figure:
    """Draw each student over its steps, a panel per method.

    Args:
        points: Those of one teacher-student pair and budget.
        measure: What is drawn.
        deploy: Named in the legend line: which KDCI line is the deployed one.
        teacher_accuracy: Drawn as a line where the measure is accuracy.
    """
    what = "Accuracy on the test split"
    if measure == "agreement":
        what = "Agreement with the teacher on held-out substitutes"
    pair = pair_text(Group(points[0].teacher, points[0].student, points[0].budget))
    by_method = grouped(points, lambda point: point.method)
    figure, places = style.panels(
        len(by_method),
        2,
        body=2.4,
        below=0.45,
        left=style.MARGIN + _AXIS_ROOM,
        gap=_LABEL_ROOM + _AXIS_ROOM,
        right=style.MARGIN + _LABEL_ROOM,
        title=f"Learning curves: {pair}",
        subtitle=f"{what}, percent, over distillation steps; thin: single students, thick: their "
        f"mean; deployed: {deploy}",
    )
    for axes, (method, of_method) in zip(places, by_method.items(), strict=True):
        axes.set_title(title_of(method))
        _curve_panel(axes, of_method, measure, teacher_accuracy)
    return figure


def _curve_panel(
    axes: Axes, points: Sequence[CurvePoint], measure: Measure, teacher_accuracy: float | None
) -> None:
    labels: list[tuple[float, str, str]] = []
    for series in SERIES:
        curves = _curves([point for point in points if point.variant == series], measure)
        if not curves:
            continue
        color = _SERIES_COLORS[series]
        dashed = (0, (3, 1.5)) if series == "kdci compensated" else "-"
        if len(curves) > 1:
            for curve in curves:
                steps, values = list(curve), list(curve.values())
                axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.45, linestyle=dashed)
        shared = sorted(set.intersection(*map(set, curves)))
        mean = [float(np.mean([curve[step] for curve in curves])) for step in shared]
        axes.plot(shared, mean, color=color, linewidth=2.0, linestyle=dashed)
        labels.append((mean[-1], f"{_SERIES_TITLES[series]} {number(mean[-1])}", color))
    if teacher_accuracy is not None and measure == "accuracy":
        axes.axhline(teacher_accuracy, color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)))
        labels.append((teacher_accuracy, f"teacher {number(teacher_accuracy)}", style.INK))
    axes.set_xlim(left=0)
    axes.margins(x=0.0)
    style.value_axis(axes)
    _end_labels(axes, labels)


def _end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    low, high = axes.get_ylim()
    heights = style.spread([value for value, _, _ in labels], (high - low) * 0.07)
    outside = max(0.0, max(heights) - high)
    heights = [height - outside for height in heights]
    for height, (_, text, color) in zip(heights, labels, strict=True):
        style.beside(axes, text, 1, height, 5, color=color, weight="bold", size=8)


def _curves(points: Sequence[CurvePoint], measure: Measure) -> list[dict[int, float]]:
    """Return the values of each replicate that has any, by step."""
    found: dict[str, dict[int, float]] = {}
    for point in sorted(points, key=lambda point: point.step):
        value = point.value(measure)
        if value is not None:
            found.setdefault(point.replicate, {})[point.step] = value
    return list(found.values())
