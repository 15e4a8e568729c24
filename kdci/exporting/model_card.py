"""The model card: `README.md` of an export, in Hugging Face's format."""

from __future__ import annotations

from kdci.deconfounding.arms import ARMS, arm_title
from kdci.exporting.card_sections import (
    MOST_CLASSES,
    budget_lines,
    compensation_lines,
    dictionary_lines,
    pool_lines,
    result_lines,
    shown_names,
    teacher_lines,
)
from kdci.exporting.footprint_table import footprint_lines
from kdci.exporting.front_matter import front_matter
from kdci.exporting.release import Release
from kdci.exporting.snippets import loading_lines
from kdci.reporting.text.tables import markdown
from kdci.substitution.registry import title_of


def model_card(release: Release) -> str:
    """Return the whole card.

    Raises:
        IntegrityError: Its front matter can not be read again.
    """
    sections = {
        "Results": result_lines(release),
        "Teacher": teacher_lines(release),
        "Substitution pool": pool_lines(release),
        "Confounder dictionary": dictionary_lines(release),
        "Bias compensation": compensation_lines(release),
        "Training": budget_lines(release),
        "Size and speed": footprint_lines(release.footprint),
        "Data and licence": _licence_lines(release),
        "Limits": _limit_lines(release),
        "How to load it": loading_lines(release),
        "Provenance": _provenance_lines(release),
    }
    body = [f"# {release.lineage.cell.name}", "", *_summary_lines(release)]
    for title, lines in sections.items():
        body += ["", f"## {title}", *lines]
    return front_matter(release) + "\n".join(body) + "\n"


def _summary_lines(release: Release) -> list[str]:
    facts, cell = release.facts, release.lineage.cell
    channels, side, _ = release.shape
    arm = ARMS[cell.variant].summary if cell.variant in ARMS else cell.variant
    return [
        f"An image classifier, {facts['num_classes']} classes: a `{cell.student}` distilled from a "
        f"`{cell.teacher}` without its training data. Method {title_of(cell.method)}, arm "
        f"{arm_title(cell.variant)} ({arm}); it answers as `{release.deploy}`.",
        "",
        f"Input: float32 images (N, {channels}, {side}, {side}) in [0, 1], any N. Normalisation is "
        f"inside. Output: logits (N, {facts['num_classes']}).",
        "",
        release.preprocessing,
        *_class_lines(release),
    ]


def _class_lines(release: Release) -> list[str]:
    """Return what the logits stand for, in their order."""
    if release.class_names is None:
        return ["", "Classes: numbers alone; the card of the student has no names of them."]
    shown = [f"{index} {name}" for index, name in enumerate(shown_names(release)[:MOST_CLASSES])]
    rest = len(release.class_names) - len(shown)
    more = f", and {rest} more in `export.json`" if rest > 0 else ""
    return ["", f"Classes, in the order of the logits: {', '.join(shown)}{more}."]


def _licence_lines(release: Release) -> list[str]:
    return [
        f"- Data of the teacher: {release.facts['dataset']}. Its licence: "
        f"{release.terms.data_license}.",
        f"- Licence of these weights: {release.terms.license}.",
        "- The student saw none of that data. What a teacher remembers of it can be in its "
        "substitutes, and so in the student: leaving the data out is no proof of privacy.",
    ]


def _limit_lines(release: Release) -> list[str]:
    error, bias = release.measure("calibration_error"), release.measure("marginal_bias")
    measured = ""
    if error is not None:
        measured = f" Measured here: expected calibration error {error:.1f} %."
    lines = [
        "- Distilled on substitutes: how it does on images of your own is not known until it is "
        "measured on them. It knows no other classes, and does not say when an image is of none.",
        "- The pool is shifted as told above. Classes that it holds few or none of may be learnt "
        "badly, whatever the mean accuracy is.",
        f"- No calibration is claimed: softmax of the logits is no probability to rely on."
        f"{measured}",
    ]
    if bias is not None:
        lines.append(
            f"- Its predicted class proportions are {bias:.3f} away from the true ones on the test "
            "split (total variation; 0: the same, 1: disjoint)."
        )
    return lines


def _provenance_lines(release: Release) -> list[str]:
    card = release.lineage.student.card
    seeds = ", ".join(f"{name} {seed}" for name, seed in card.get("seeds", {}).items())
    rows = [["artifact", "content (SHA-256)", "card (SHA-256)"]]
    for role, hashes in release.provenance().items():
        stated = hashes["card_sha256"]
        rows.append([role, f"`{hashes['content']}`", f"`{stated}`" if stated else "not at hand"])
    made = ", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items())
    return [
        f"- Commit: `{card.get('code', {}).get('revision', 'unknown')}`; params: "
        f"`{card.get('params_hash', 'unknown')}`; seeds: {seeds or 'unknown'}.",
        f"- Distilled with {made or 'unknown versions'}.",
        "- `card.json` has the SHA-256 of every file here, `export.json` what this page says, for "
        "programs.",
        "",
        markdown(rows, num_names=None),
    ]
