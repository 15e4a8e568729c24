"""All figures of a report: which there are, their captions, and their PNG bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdci.catalog import CONTROL_NAMES
from kdci.reporting.comparison import compare
from kdci.reporting.evidence import Evidence, PoolView
from kdci.reporting.results import measure_of
from kdci.reporting.wording import method_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class DrawnFigure:
    """A finished figure.

    Attributes:
        name: File name below ``report/figures``.
        section: Heading of the report it belongs to.
        caption: What it shows, in one or two sentences.
        png: The image file.
    """

    name: str
    section: str
    caption: str
    png: bytes


def draw_figures(evidence: Evidence) -> list[DrawnFigure]:
    """Draw whatever there is evidence for; what has not been run has no figure."""
    from kdci.reporting.style import drawing, png

    with drawing():
        return [
            DrawnFigure(name + ".png", section, caption, png(figure))
            for draw in (_overviews, _galleries, _pools, _dictionaries, _curves, _predictions)
            for name, section, caption, figure in draw(evidence)
        ]


_Drawn = Iterator[tuple[str, str, str, "Figure"]]


def _overviews(evidence: Evidence) -> _Drawn:
    from kdci.reporting.overview import overview

    comparisons = [one for one in compare(evidence.rows, evidence.keys) if not one.is_control]
    pairs = list(dict.fromkeys((one.teacher, one.student) for one in comparisons))
    for number, (teacher, student) in enumerate(pairs):
        pools = {pool.method: pool for pool in reversed(evidence.pools) if pool.teacher == teacher}
        of_pair = [one for one in comparisons if (one.teacher, one.student) == (teacher, student)]
        if not pools and all(one.difference is None for one in of_pair):
            continue
        figure = overview(list(pools.values()), of_pair, evidence.rows, evidence.spec.class_names)
        name = "overview" if number == 0 else f"overview-{teacher}-{student}"
        caption = (
            f"{teacher} to {student}: the substitution pool of each method (class proportions, a "
            "random image per class) and the paired result. Dot and line: mean and 95 % interval; "
            "ticks: single replicates."
        )
        yield name, "Overview", caption, figure


def _galleries(evidence: Evidence) -> _Drawn:
    from kdci.reporting.gallery_figures import by_class, over_time

    names = evidence.spec.class_names
    for teacher in dict.fromkeys(pool.teacher for pool in evidence.pools):
        pools: list[PoolView] = []  # the first of each method, in the order of the grid
        for pool in evidence.pools:
            if pool.teacher == teacher and pool.method not in {known.method for known in pools}:
                pools.append(pool)
        caption = (
            f"The pools side by side: a random image of each class as {teacher} sees it, a row per "
            "method."
        )
        yield f"gallery-{teacher}", "Substitution pools", caption, by_class(pools, names)
        made = [pool for pool in pools if pool.num_made and pool.method not in CONTROL_NAMES]
        if made:
            caption = (
                "What the methods that synthesise made over time, from the first images of the "
                "pool to the last."
            )
            yield f"gallery-time-{teacher}", "Substitution pools", caption, over_time(made)


def _pools(evidence: Evidence) -> _Drawn:
    from kdci.reporting.chart_figures import proportions
    from kdci.reporting.image_figures import substitutes

    names = evidence.spec.class_names
    for teacher in dict.fromkeys(pool.teacher for pool in evidence.pools):
        pools = [pool for pool in evidence.pools if pool.teacher == teacher]
        caption = (
            f"Class proportions of the pools as {teacher} sees them, against uniform (dashed): the "
            "shift that confounds distillation."
        )
        yield f"proportions-{teacher}", "Substitution pools", caption, proportions(pools, names)
    for pool in evidence.pools:
        caption = (
            f"{method_title(pool.method)}, pool {pool.pool_seed}: random substitution images per "
            f"class of {pool.teacher}, each with the teacher's confidence."
        )
        name = f"substitutes-{pool.teacher}-{pool.method}-pool{pool.pool_seed}"
        yield name, "Substitution pools", caption, substitutes(pool, names)


def _dictionaries(evidence: Evidence) -> _Drawn:
    from kdci.reporting.chart_figures import dictionary

    for view in evidence.dictionaries:
        caption = (
            f"{method_title(view.method)}, pool {view.pool_seed}: the confounder dictionary, its "
            f"prototypes in {view.facts['space']} and their proportions P(z); dashed: uniform."
        )
        name = f"dictionary-{view.teacher}-{view.method}-pool{view.pool_seed}"
        yield name, "Confounder dictionary", caption, dictionary(view, evidence.spec.class_names)


def _curves(evidence: Evidence) -> _Drawn:
    from kdci.reporting.curve_figures import learning_curves

    measure = measure_of(evidence.rows)
    deploy = next((row.deploy for row in evidence.rows if row.variant == "kdci"), "backbone")
    for pair in dict.fromkeys((point.teacher, point.student) for point in evidence.points):
        teacher, student = pair
        points = [point for point in evidence.points if (point.teacher, point.student) == pair]
        if all((p.accuracy if measure == "accuracy" else p.agreement) is None for p in points):
            continue
        accuracies = [row.teacher_accuracy for row in evidence.rows if row.teacher == teacher]
        figure = learning_curves(
            points,
            measure=measure,
            deploy=deploy,
            teacher_accuracy=accuracies[0] if accuracies else None,
        )
        caption = (
            f"Learning curves, {teacher} to {student}: thin lines are single students, thick ones "
            "their mean."
        )
        yield f"curves-{teacher}-{student}", "Learning curves", caption, figure


def _predictions(evidence: Evidence) -> _Drawn:
    from kdci.reporting.image_figures import predictions

    for examples in evidence.examples:
        if not examples.predictions or examples.method in CONTROL_NAMES:
            continue
        on_test = examples.evaluated_on == "test"
        pictures = "test images" if on_test else "held-out substitutes (there is no test data)"
        caption = (
            f"{method_title(examples.method)}, {examples.teacher} to {examples.student}: "
            f"{pictures} and what the teacher, a vanilla and a KDCI student take them for. Images "
            "on which the two students differ come first, so errors are more frequent here than "
            "on the whole set."
        )
        name = f"predictions-{examples.teacher}-{examples.student}-{examples.method}"
        figure = predictions(examples, evidence.spec.class_names)
        yield name, "Predictions", caption, figure
