"""Learning curves: students over their distillation steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdci.reporting.evidence import SERIES, CurvePoint
from kdci.reporting.figures.style import (
    COMPENSATED,
    FAINT,
    HEADING,
    INK,
    KDCI,
    MARGIN,
    VANILLA,
    WIDTH,
    few_ticks,
    heading,
    place,
    spread,
)
from kdci.reporting.results import Measure
from kdci.reporting.text.wording import number, pair_text
from kdci.substitution.registry import title_of

_SERIES_COLORS = dict(zip(SERIES, (VANILLA, KDCI, COMPENSATED), strict=True))
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
    methods = list(dict.fromkeys(point.method for point in points))
    columns = min(len(methods), 2)
    num_rows = -(-len(methods) // columns)
    panel = (2.4, 0.75)
    figure = Figure(figsize=(WIDTH, HEADING + num_rows * sum(panel)))
    what = (
        "Accuracy on the test split"
        if measure == "accuracy"
        else ("Agreement with the teacher on held-out substitutes")
    )
    pair = pair_text((points[0].teacher, points[0].student, points[0].budget))
    heading(
        figure,
        f"Learning curves: {pair}",
        f"{what}, percent, over distillation steps; thin: single students, thick: their mean; "
        f"deployed: {deploy}",
    )
    label_room, axis_room = 1.3, 0.3
    width = (WIDTH - 2 * MARGIN) / columns - label_room - axis_room
    for index, method in enumerate(methods):
        row, column = divmod(index, columns)
        left = MARGIN + axis_room + column * (width + label_room + axis_room)
        axes = place(figure, left, HEADING + 0.3 + row * sum(panel), width, panel[0])
        axes.set_title(title_of(method))
        of_method = [point for point in points if point.method == method]
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
            for steps, values in curves:
                axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.45, linestyle=dashed)
        steps, mean = _mean_curve(curves)
        axes.plot(steps, mean, color=color, linewidth=2.0, linestyle=dashed)
        labels.append((mean[-1], f"{_SERIES_TITLES[series]} {number(mean[-1])}", color))
    if teacher_accuracy is not None and measure == "accuracy":
        axes.axhline(teacher_accuracy, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        labels.append((teacher_accuracy, f"teacher {number(teacher_accuracy)}", INK))
    axes.set_xlim(left=0)
    axes.margins(x=0.0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(few_ticks())
    axes.yaxis.set_major_locator(few_ticks())
    _end_labels(axes, labels)


def _end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    low, high = axes.get_ylim()
    heights = spread([value for value, _, _ in labels], (high - low) * 0.07)
    outside = max(0.0, max(heights) - high)
    heights = [height - outside for height in heights]
    for height, (_, text, color) in zip(heights, labels, strict=True):
        axes.annotate(
            text,
            (1, height),
            (5, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=color,
            va="center",
            weight="bold",
            size=8,
            annotation_clip=False,
        )


def _curves(points: Sequence[CurvePoint], measure: Measure) -> list[tuple[list[int], list[float]]]:
    """Return steps and values of each replicate that has any."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for point in sorted(points, key=lambda point: point.step):
        value = point.accuracy if measure == "accuracy" else point.agreement
        if value is not None:
            steps, values = found.setdefault(point.replicate, ([], []))
            steps.append(point.step)
            values.append(value)
    return list(found.values())


def _mean_curve(curves: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """Return the mean over replicates at the steps that all of them have."""
    tables = [dict(zip(steps, values, strict=True)) for steps, values in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return shared, [float(np.mean([table[step] for table in tables])) for step in shared]
