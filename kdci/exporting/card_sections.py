"""The sections of a model card that tell of the student: how it scored, and what made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from kdci.deconfounding.arms import ARMS
from kdci.exporting.release import Release
from kdci.reporting.statistics import estimate
from kdci.reporting.text.wording import mean_text
from kdci.substitution.registry import title_of

NOT_AT_HAND = "not at hand when this was exported"
MOST_CLASSES = 20
"""Of more classes, the proportions of the largest and the smallest are listed."""
MOST_LISTED = 5


def result_lines(release: Release) -> list[str]:
    """Return accuracy and agreement, each with what it was measured on."""
    scores = release.lineage.scores
    if scores is None:
        return ["Not measured: the evaluation of this student was not at hand."]
    if release.accuracy is None or scores.num_images is None:
        lines = ["- Accuracy: not measured, there was no test data."]
    else:
        lines = [
            f"- Accuracy: {release.accuracy:.2f} % of {scores.num_images:,} test images of "
            f"{release.facts['dataset']} (95 % interval over images "
            f"{_interval(release.accuracy, scores.num_images)}), one student, last epoch.",
            *_replicate_lines(release),
        ]
    agreement = release.measure("agreement")
    if agreement is not None:
        pool = release.lineage.pool
        of = "" if pool is None else f"{pool['facts']['num_holdout']:,} "
        lines.append(
            f"- Agreement with the teacher: {agreement:.2f} % of {of}held-out substitutes. It is "
            "no accuracy: the substitutes are not real images, and the teacher errs."
        )
    return lines


def _interval(accuracy: float, num_images: int) -> str:
    """Return Wilson's interval of a share in percent."""
    from scipy.stats import binomtest

    right = round(accuracy * num_images / 100)
    found = binomtest(right, num_images).proportion_ci(confidence_level=0.95, method="wilson")
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _replicate_lines(release: Release) -> list[str]:
    """Return the mean over the arm's students; nothing where this one is the only one."""
    scores = release.lineage.scores
    assert scores is not None
    values = [row[f"accuracy_{release.deploy}"] for row in scores.replicates]
    if len(values) < 2:
        return ["- Seeds: this one student; how much another seed changes was not measured."]
    return [
        f"- Seeds: {mean_text(estimate(values))} % over the {len(values)} students of this arm "
        "(mean and half of its 95 % t-interval)."
    ]


def teacher_lines(release: Release) -> list[str]:
    """Return which network the teacher is and how it scored."""
    cell, teacher = release.lineage.cell, release.lineage.teacher
    content = release.lineage.parent("teacher") or "unknown"
    lines = [f"- `{cell.teacher}`, content `{content}`."]
    if teacher is None:
        return [*lines, f"- Its accuracy: {NOT_AT_HAND}."]
    accuracy = teacher.facts.get("accuracy")
    if accuracy is None:
        return [*lines, "- Its accuracy on test data: not measured."]
    return [*lines, f"- Its accuracy on the test split: {accuracy:.2f} %."]


def pool_lines(release: Release) -> list[str]:
    """Return how large the pool is, where it is from, and how it is shifted."""
    pool, facts = release.lineage.pool, release.facts
    if pool is None:
        return [f"- {NOT_AT_HAND.capitalize()}; content `{release.lineage.parent('pool')}`."]
    of_pool = pool["facts"]
    size = f"- {of_pool['num_images']:,} images"
    if facts["num_images"] != of_pool["num_images"]:
        size += f" when distillation began, {facts['num_images']:,} at its end"
    lines = [f"{size}; {of_pool['num_holdout']:,} more were held out.", f"- {_source(pool)}"]
    skipped = {reason: count for reason, count in of_pool.get("skipped", {}).items() if count}
    if skipped:
        told = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
        lines.append(f"- Files left out: {told}.")
    return lines + _shift_lines(of_pool, shown_names(release))


def _source(pool: Mapping[str, Any]) -> str:
    facts = pool["facts"]
    if "base" in facts:
        base, distinct = title_of(facts["base"]), facts["num_distinct"]
        return f"Source: {distinct:,} images of the {base} pool, resampled and degraded on purpose."
    if not facts.get("num_open_world"):
        return "Source: made from the teacher alone, no photograph."
    blocks = [block for block in pool["params"].values() if isinstance(block, Mapping)]
    found = [block["open_world"] for block in blocks if "open_world" in block]
    return f"Source: {facts['num_open_world']:,} of its images are open-world ones{_parts(found)}."


def _parts(open_worlds: Sequence[Mapping[str, Any]]) -> str:
    """Return where open-world images are from; of a path its last part, which is no machine's."""
    told = []
    for block in open_worlds:
        for part in block.get("sources") or [block]:
            path = part.get("path")
            told.append(part["source"] + (f" `{PurePath(path).name}`" if path else ""))
    return f" ({', '.join(told)})" if told else ""


def _shift_lines(pool: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    shares = pool["proportions"]
    distance = sum(abs(share - 1 / len(shares)) for share in shares) / 2
    missing = [names[index] for index in pool["missing_classes"]]
    return [
        f"- Shift, as the teacher labels the pool: total variation of the class proportions from "
        f"even {distance:.3f} (0: even), mean confidence {pool['confidence']:.3f}.",
        f"- Class proportions: {_proportions(shares, names)}.",
        f"- Classes that it holds none of: {_some(missing) if missing else 'none'}.",
    ]


def shown_names(release: Release) -> Sequence[str]:
    """Return what to call the classes on a line of the card: their names, or their numbers."""
    names = release.class_names or map(str, range(release.facts["num_classes"]))
    return [" ".join(name.split()) for name in names]


def _proportions(shares: Sequence[float], names: Sequence[str]) -> str:
    told = [f"{name}: {100 * share:.1f} %" for name, share in zip(names, shares, strict=True)]
    if len(told) <= MOST_CLASSES:
        return ", ".join(told)
    order = sorted(range(len(shares)), key=lambda index: -shares[index])
    largest = ", ".join(told[index] for index in order[:MOST_LISTED])
    smallest = ", ".join(told[index] for index in order[-MOST_LISTED:])
    return f"largest {largest}; smallest {smallest}"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - MOST_CLASSES
    return ", ".join(names[:MOST_CLASSES]) + (f" and {rest} more" if rest > 0 else "")


def dictionary_lines(release: Release) -> list[str]:
    """Return which dictionary the student was de-confounded with."""
    content = release.lineage.parent("dictionary")
    if content is None:
        return ["- None: this arm uses no dictionary."]
    card = release.lineage.dictionary
    if card is None:
        return [f"- {NOT_AT_HAND.capitalize()}; content `{content}`."]
    facts = card["facts"]
    lines = [
        f"- {facts['num_prototypes']} prototypes ({facts['requested']} asked for) in the space of "
        f"{facts['space']}, {facts['dimension']} values each, of {facts['num_predictions']:,} "
        f"predictions of `{facts['teacher']}`.",
        f"- Hash of prototypes and proportions: `{facts['dictionary_hash']}`.",
    ]
    rebuilt = release.facts.get("rebuilt", [])
    if rebuilt:
        lines.append(f"- Rebuilt {len(rebuilt)} times while distilling: the last one is in phi.")
    return lines


def compensation_lines(release: Release) -> list[str]:
    """Return whether phi is part of what was exported."""
    phi, variant = release.facts["compensation"], release.lineage.cell.variant
    if phi is None:
        summary = ARMS[variant].summary if variant in ARMS else variant
        return [f"- None to keep or to drop: {summary}."]
    trained = f"Distilled with phi, fusion `{phi['fusion']}`, lambda {phi['weights']}."
    if release.deploy == "backbone":
        return [f"- {trained} Dropped here: the backbone answers alone, at no cost of its own."]
    return [f"- {trained} Kept: phi and its dictionary are inside of every file here."]


def budget_lines(release: Release) -> list[str]:
    """Return how long the student was trained."""
    facts, card = release.facts, release.lineage.student.card
    budget = card.get("params", {}).get("budget")
    steps, batch = facts["num_steps"], facts["batch_size"]
    precision = card.get("runtime", {}).get("precision", "unknown")
    stated = f", {budget:g} times the steps of the recipe" if budget not in (None, 1) else ""
    return [
        f"- {steps:,} steps of {batch} images ({steps * batch:,} in all){stated}.",
        f"- Trained in {precision}, exported in fp32.",
    ]
