"""``report/report.md``: what was found, how sure that is, on what, and how to do it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kdci.reporting.comparison import Comparison, compare
from kdci.reporting.evidence import DictionaryView, Evidence
from kdci.reporting.published.ledger import ledger, ledger_section, no_ledger
from kdci.reporting.text.sections import (
    arms_section,
    distribution_shift,
    known_shifts_section,
    mcnemar_section,
)
from kdci.reporting.text.tables import by_pair, comparison_cells, markdown, rows_table
from kdci.reporting.text.wording import (
    BUDGET_NOTE,
    MEASURE_NOTES,
    UNKNOWN,
    budget_text,
    hardware,
    headline,
    number,
    pair_text,
)
from kdci.substitution.registry import title_of

if TYPE_CHECKING:  # a report without figures loads no matplotlib
    from kdci.reporting.figures.drawing import DrawnFigure

_MAX_LISTED = 12


def report_text(evidence: Evidence, figures: Sequence[DrawnFigure]) -> str:
    """Return the report in Markdown.

    Args:
        evidence: What there is of the grid.
        figures: Drawn from it; the report refers to them as ``figures/<name>``.
    """
    comparisons = compare(evidence.rows, evidence.keys)
    lines = ledger(evidence)

    def illustrated(section: str, text: str) -> str:
        images = [_image(figure) for figure in figures if figure.section == section]
        parts = [part for part in (text, *images) if part]
        return "\n\n".join([f"## {section}", *parts]) if parts else ""

    sections = [
        f"# KDCI report: {evidence.preset}",
        _headlines(comparisons),
        *(_image(figure) for figure in figures if figure.section == "Overview"),
        "## Results\n\n" + _results(evidence, comparisons),
        illustrated("Arms", arms_section(evidence)),
        illustrated("Known shifts", known_shifts_section(evidence)),
        illustrated("Published tables", ledger_section(lines)),
        "## Setting\n\n" + _setting(evidence),
        "## What was run\n\n" + _what_was_run(evidence),
        "" if lines else no_ledger(evidence.spec.name),
        illustrated("Substitution pools", _pool_table(evidence)),
        illustrated("Distribution shift", distribution_shift(evidence)),
        illustrated("Confounder dictionary", _dictionary_table(evidence.dictionaries)),
        illustrated("Learning curves", ""),
        illustrated("Predictions", mcnemar_section(evidence)),
        illustrated("Every student", "\n\n".join(by_pair(evidence.rows, rows_table))),
        "## Run it again\n\n`dvc repro` repeats whatever its inputs have changed for and writes "
        "this report anew; `dvc repro -f` repeats everything.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _image(figure: DrawnFigure) -> str:
    return f"![{figure.section}](figures/{figure.name})\n\n*{figure.caption}*"


def _headlines(comparisons: Sequence[Comparison]) -> str:
    several = len({one.group for one in comparisons}) > 1
    lines = [
        (f"- {pair_text(one.group)}, " if several else "- ") + f"**{headline(one)}**"
        for one in comparisons
    ]
    budget = comparisons[0].group.budget
    if not several and budget != 1:
        lines += ["", f"All students have a budget of {budget:g}."]
    return "\n".join([*lines, "", _caveat(comparisons)])


def _caveat(comparisons: Sequence[Comparison]) -> str:
    deploy = _deployed(comparisons)
    what = "with its compensation module" if deploy == "compensated" else "without any module"
    return (
        f"The compared number of a KDCI student is that of its deployed prediction, `{deploy}`: "
        f"the student {what}. Differences are paired by pool seed and student seed; intervals are "
        "95 % t-intervals over those replicates, each for itself and not corrected for the number "
        "of methods. Replicates on one pool share its images: they say little about other pools."
    )


def _deployed(comparisons: Sequence[Comparison]) -> str:
    return next((one.deploy for one in comparisons if one.mean), "backbone")


def _results(evidence: Evidence, comparisons: Sequence[Comparison]) -> str:
    parts = by_pair(comparisons, lambda own: markdown(comparison_cells(own)))
    note = MEASURE_NOTES[comparisons[0].measure]
    note = note[0].upper() + note[1:]
    parts.append(
        f"{note}; mean ± half of the 95 % interval. Paired difference: KDCI's "
        f"{_deployed(comparisons)} minus vanilla, in points, with its interval. Seconds: "
        "distillation alone, vanilla / KDCI."
    )
    if any(one.group.budget != 1 for one in comparisons):
        parts.append(BUDGET_NOTE)
    return "\n\n".join(parts)


def _setting(evidence: Evidence) -> str:
    spec = evidence.spec
    lines = [
        f"- Dataset: {spec.name}, {spec.num_classes} classes, {spec.image_size} x "
        f"{spec.image_size} pixels, {spec.channels} channel{'s' if spec.channels > 1 else ''}"
    ]
    for name, facts in evidence.teachers.items():
        accuracy = facts.get("accuracy")
        known = "not known, there is no test data" if accuracy is None else f"{number(accuracy)} %"
        lines.append(f"- Teacher {name}: test accuracy {known}")
    lines += _budget(evidence)
    compensated = [card.get("params", {}).get("compensation") for card in _cards(evidence)]
    if any(compensated):
        fusions = _distinct(block["fusion"] for block in compensated if block)
        lines.append(f"- Fusion of KDCI's students: {fusions}")
    runtimes = [card["runtime"] for card in _cards(evidence)]
    lines.append(f"- Device: {_distinct(hardware(runtime) for runtime in runtimes)}")
    for key in ("threads", "precision"):
        lines.append(f"- {key.capitalize()}: {_distinct(one.get(key) for one in runtimes)}")
    revisions = [card["code"].get("revision") for card in _cards(evidence)]
    lines.append(f"- Code revision: {_distinct(revisions)}")
    return "\n".join(lines)


def _cards(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the cards of the students, whose times and accuracies the report is about."""
    return list(evidence.students.values()) or list(evidence.evaluation_cards)


def _distinct(values: Iterable[Any]) -> str:
    known = dict.fromkeys(str(value) for value in values if value is not None)
    return ", ".join(known) or "unknown"


def _budget(evidence: Evidence) -> list[str]:
    """Return each method's budget; one line, unless its students differ."""
    found: dict[str, dict[str, None]] = {}
    for cell, card in evidence.students.items():
        facts = card["facts"]
        images = facts["num_steps"] * facts["batch_size"]
        text = f"{facts['num_steps']:,} steps x batch {facts['batch_size']} = {images:,} images"
        row = evidence.row_of(cell)
        text += budget_text(row.budget) if row else ""
        found.setdefault(cell.method, {})[text] = None
    return [
        f"- Budget of a {title_of(method)} student: {'; '.join(texts)}"
        for method, texts in found.items()
    ]


def _what_was_run(evidence: Evidence) -> str:
    done, wanted = len(evidence.rows), len(evidence.wanted)
    lines = [f"{done} of the grid's {wanted} students were distilled and evaluated."]
    missing = [cell.name for cell in evidence.not_run]
    if missing:
        listed = [f"- not run: {name}" for name in missing[:_MAX_LISTED]]
        if len(missing) > _MAX_LISTED:
            listed.append(f"- not run: {len(missing) - _MAX_LISTED} more")
        lines += ["", *listed]
    return "\n".join(lines)


def _pool_table(evidence: Evidence) -> str:
    if not evidence.pools:
        return ""
    names = evidence.spec.class_names
    head = ["pool", "teacher", "images", "total variation", "missing classes", "mean confidence"]
    lines = [head]
    for pool in evidence.pools:
        missing = pool.facts["missing_classes"]
        listed = ", ".join(names[index] for index in missing) or "none"
        lines.append(
            [
                pool.title,
                pool.teacher,
                f"{pool.facts['num_images']:,}",
                number(pool.total_variation, 2),
                listed if len(missing) <= _MAX_LISTED else f"{len(missing)} of {len(names)}",
                f"{number(100 * pool.facts['confidence'])} %",
            ]
        )
    return (
        f"{markdown(lines, num_names=None)}\n\nAll by the teacher's predictions. Total variation: "
        "distance of the class proportions from uniform, 0 for a balanced pool. These are the "
        "pools that distillation starts from; a generating method adds to its own while it distils."
    )


def _dictionary_table(dictionaries: Sequence[DictionaryView]) -> str:
    if not dictionaries:
        return ""
    lines = [["dictionary", "teacher", "space", "prototypes N", "dimension", "predictions", "P(z)"]]
    lines[0] += ["effective N", "purity", "NMI", "mean distance to z"]
    for view in dictionaries:
        shares, facts = 100 * view.proportions, view.facts
        purity = facts.get("purity")
        lines.append(
            [
                view.title,
                str(facts["teacher"]),
                str(facts["space"]),
                f"{len(shares)} of {facts['requested']}",
                str(view.prototypes.shape[1]),
                f"{facts['num_predictions']:,}",
                f"{number(float(shares.min()))} to {number(float(shares.max()))} %",
                number(facts.get("effective_n")),
                UNKNOWN if purity is None else f"{number(100 * purity)} %",
                number(facts.get("nmi"), 2),
                number(facts.get("mean_spread"), 2),
            ]
        )
    return (
        f"{markdown(lines, num_names=None)}\n\nEffective N: as many even prototypes have the "
        "entropy of P(z). Purity: the share of predictions whose class is the most frequent one "
        "of their prototype; it grows with N by itself. NMI: normalised mutual information of "
        "prototypes and classes, 0 to 1. Classes are the teacher's."
    )
