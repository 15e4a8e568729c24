"""All figures of a report: which there are, their captions, and their PNG bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.figure import Figure

from kdci.reporting.comparison import ArmResult, compare, compare_arms, has_further_arms
from kdci.reporting.evidence import DictionaryView, Evidence, Examples, PoolView
from kdci.reporting.figures.arms import arm_gains
from kdci.reporting.figures.charts import dictionary, proportions
from kdci.reporting.figures.curves import learning_curves
from kdci.reporting.figures.gallery import by_class, over_time
from kdci.reporting.figures.images import predictions, substitutes
from kdci.reporting.figures.inspector import lambda_over_training, prototypes
from kdci.reporting.figures.overview import overview
from kdci.reporting.figures.style import drawing, png
from kdci.reporting.results import grouped, measure_of
from kdci.reporting.statistics import Discordant
from kdci.reporting.text.wording import pair_text
from kdci.substitution.registry import control_names, title_of


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
    """Draw whatever there is evidence for; what has not been run has no figure.

    Figures of numbers are about one budget: where there are several, each has its own.
    """
    whole = [(evidence, "")]
    budgets = evidence.budgets
    of_each = [(evidence.of_budget(budget), f"-budget{budget:g}") for budget in budgets]
    with drawing():
        return [
            DrawnFigure(f"{name}{ending}.png", section, caption, png(figure))
            for draw, of_numbers in _FIGURES
            for part, ending in (of_each if of_numbers and len(budgets) > 1 else whole)
            for name, section, caption, figure in draw(part)
        ]


def _budget_note(budget: float) -> str:
    return "" if budget == 1 else f" Budget of the students: {budget:g}."


_View = TypeVar("_View", PoolView, DictionaryView)
_Drawn = Iterator[tuple[str, str, str, Figure]]


def _overviews(evidence: Evidence) -> _Drawn:
    comparisons = [one for one in compare(evidence.rows, evidence.keys) if not one.is_control]
    by_group = grouped(comparisons, lambda one: one.group)
    for number, ((teacher, student, budget), of_pair) in enumerate(by_group.items()):
        pools = {pool.method: pool for pool in reversed(evidence.pools) if pool.teacher == teacher}
        if not pools and all(one.difference is None for one in of_pair):
            continue
        figure = overview(list(pools.values()), of_pair, evidence.spec.class_names)
        name = "overview" if number == 0 else f"overview-{teacher}-{student}"
        caption = (
            f"{teacher} to {student}: the substitution pool of each method (class proportions, "
            "random images by class) and the paired result. Dot and line: mean and 95 % interval; "
            "ticks: single replicates." + _budget_note(budget)
        )
        yield name, "Overview", caption, figure


def _arms(evidence: Evidence) -> _Drawn:
    measure, rows = measure_of(evidence.rows), evidence.method_rows
    if has_further_arms(rows):
        results = compare_arms(rows, measure)
        yield from _gains(results, "arms", "Arms", "What each arm gains on each method")
    shifted = compare_arms(evidence.shift_rows, measure, over_methods=False)
    yield from _gains(shifted, "shifts", "Known shifts", "What each arm gains on a known shift")


def _gains(results: Sequence[ArmResult], name: str, section: str, title: str) -> _Drawn:
    for group, of_group in grouped(results, lambda one: one.group).items():
        if all(one.difference is None for one in of_group):
            continue
        caption = (
            f"{title}, {pair_text(group)}: paired difference to vanilla, with its 95 % "
            "interval over replicates; ticks are single replicates. All panels have one axis; an "
            "arrow says that an interval goes on beyond it. Intervals are each for itself, not "
            "corrected for the number of comparisons."
        )
        figure = arm_gains(of_group, title=f"{title}: {pair_text(group)}")
        yield f"{name}-{group.teacher}-{group.student}", section, caption, figure


def _galleries(evidence: Evidence) -> _Drawn:
    first = _first_of_each(evidence.pools)
    for teacher, pools in grouped(first, lambda pool: pool.teacher).items():
        figure = by_class(pools, evidence.spec.class_names)
        caption = (
            f"The pools side by side: random images by class as {teacher} sees it, a row per "
            "method."
        )
        yield f"gallery-{teacher}", "Substitution pools", caption, figure
        # A pool with a known shift is drawn from a base's: its order tells nothing of time.
        timeless = (*control_names(), *evidence.shifts)
        made = [pool for pool in pools if pool.num_made and pool.method not in timeless]
        if made:
            caption = (
                "What the methods that synthesise made over time, from the first images of the "
                "pool to the last."
            )
            yield f"gallery-time-{teacher}", "Substitution pools", caption, over_time(made)


def _first_of_each(views: Sequence[_View]) -> list[_View]:
    """Return the first pool or dictionary of each method: replicates look alike, and are many."""
    found = {(view.teacher, view.method): view for view in reversed(views)}
    return [view for view in views if view is found[view.teacher, view.method]]


def _pools(evidence: Evidence) -> _Drawn:
    names = evidence.spec.class_names
    for teacher, pools in grouped(evidence.pools, lambda pool: pool.teacher).items():
        caption = (
            f"Class proportions of the pools as {teacher} sees them, against uniform (dashed): the "
            "shift that confounds distillation."
        )
        yield f"proportions-{teacher}", "Substitution pools", caption, proportions(pools, names)
    for pool in _first_of_each(evidence.pools):
        caption = (
            f"{pool.title}: random substitution images per class of {pool.teacher}, each with the "
            "teacher's confidence."
        )
        name = f"substitutes-{pool.teacher}-{pool.method}-pool{pool.pool_seed}"
        yield name, "Substitution pools", caption, substitutes(pool, names)


def _dictionaries(evidence: Evidence) -> _Drawn:
    names = evidence.spec.class_names
    pools = {pool.key: pool for pool in evidence.pools}
    for view in _first_of_each(evidence.dictionaries):
        caption = (
            f"{view.title}: the confounder dictionary, its prototypes in {view.facts['space']} and "
            "their proportions P(z); dashed: uniform."
        )
        place = f"{view.teacher}-{view.method}-pool{view.pool_seed}"
        yield f"dictionary-{place}", "Confounder dictionary", caption, dictionary(view, names)
        if "top_classes" in view.facts:  # cards of before do not say what prototypes are made of
            caption = (
                f"{view.title}: each prototype with its proportion P(z), the classes of its "
                "members, their mean distance to z, and the images of the pool nearest to z."
            )
            figure = prototypes(view, pools.get(view.key), names)
            yield f"prototypes-{place}", "Confounder dictionary", caption, figure
    yield from _lambdas(evidence)


def _lambdas(evidence: Evidence) -> _Drawn:
    """Draw the first KDCI student of each method."""
    kdci = [cell for cell in evidence.lambdas if cell.variant == "kdci"]
    by_method = grouped(kdci, lambda cell: (cell.teacher, cell.student, cell.method))
    for key, (cell, *_) in by_method.items():
        caption = (
            f"{title_of(cell.method)}, {cell.teacher} to {cell.student}, "
            f"{cell.replicate}: the weight lambda that the KDCI student gives each prototype "
            "while it learns, and at the right edge the prototype's proportion P(z)."
        )
        figure = lambda_over_training(cell, evidence.lambdas[cell], evidence.proportions_of(cell))
        yield "lambda-" + "-".join(key), "Confounder dictionary", caption, figure


def _curves(evidence: Evidence) -> _Drawn:
    measure = measure_of(evidence.rows)
    deploy = next((row.deploy for row in evidence.rows if row.variant == "kdci"), "backbone")
    of_methods = [point for point in evidence.points if point.method not in evidence.shifts]
    by_pair = grouped(of_methods, lambda point: (point.teacher, point.student))
    for (teacher, student), points in by_pair.items():
        if all(point.value(measure) is None for point in points):
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
            "their mean." + _budget_note(points[0].budget)
        )
        yield f"curves-{teacher}-{student}", "Learning curves", caption, figure


def _predictions(evidence: Evidence) -> _Drawn:
    for examples in evidence.examples:
        if not examples.predictions or examples.method in control_names():
            continue
        on_test = examples.evaluated_on == "test"
        pictures = "test images" if on_test else "held-out substitutes (there is no test data)"
        caption = (
            f"{title_of(examples.method)}, {examples.teacher} to {examples.student}: "
            f"{pictures} and what the students of the first seed and the teacher take them for. "
            "Images on which they differ come first, so errors are more frequent here than on the "
            "whole set." + _students_note(evidence, examples)
        )
        name = f"predictions-{examples.teacher}-{examples.student}-{examples.method}"
        counts = _counts(evidence, examples)
        figure = predictions(examples, evidence.spec.class_names, counts)
        yield name, "Predictions", caption, figure


def _students_note(evidence: Evidence, examples: Examples) -> str:
    """Return the budgets of the students that examples show: those of the first seeds."""
    key = (examples.teacher, examples.student, examples.method)
    shown = [row for row in evidence.rows if row.key == key]
    first = [row.budget for row in shown if row.replicate == shown[0].replicate]
    return "".join(_budget_note(budget) for budget in dict.fromkeys(first))


def _counts(evidence: Evidence, examples: Examples) -> Discordant | None:
    """Return how often only one of the two students that examples show is right."""
    key = (examples.teacher, examples.student, examples.method)
    for cell in evidence.wanted:
        if (cell.teacher, cell.student, cell.method) == key and cell.variant == "kdci":
            return evidence.discordant(cell)  # the first of a grid's pool seeds and seeds
    return None


_FIGURES: tuple[tuple[Callable[[Evidence], _Drawn], bool], ...] = (
    (_overviews, True),
    (_arms, True),
    (_galleries, False),
    (_pools, False),
    (_dictionaries, False),
    (_curves, True),
    (_predictions, False),
)
"""Every figure in the order of the report, and whether it shows numbers of students."""
