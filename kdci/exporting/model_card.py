"""The model card: `README.md` of an export, in Hugging Face's format."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, StrictUndefined
from ruamel.yaml import YAML
from scipy.stats import binomtest

from kdci.config.catalog import BACKBONE_NAMES, CUSTOM
from kdci.deconfounding.arms import ARMS, arm_title
from kdci.exporting.card_template import PAGE
from kdci.exporting.footprint import footprint_note, footprint_rows
from kdci.exporting.release import Release
from kdci.reporting.statistics import estimate
from kdci.reporting.text.tables import markdown
from kdci.reporting.text.wording import mean_text
from kdci.substitution.registry import title_of

TAGS = ("image-classification", "knowledge-distillation", "data-free", "kdci")
MOST_CLASSES = 20
"""Of more classes, the proportions of the largest and the smallest are listed."""
MOST_LISTED = 5


def model_card(release: Release) -> str:
    """Return the whole card."""
    pages = Environment(  # noqa: S701  # Markdown, where nothing is escaped
        trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    pages.filters["to"] = format
    asked = (arm_title, estimate, footprint_note, footprint_rows, markdown, mean_text, title_of)
    pages.globals.update({each.__name__: each for each in asked})
    return front_matter(release) + pages.from_string(PAGE).render(_told(release))


def front_matter(release: Release) -> str:
    """Return licence, tags, data and, where it was measured, accuracy as a share of 1, in YAML."""
    facts, cell, accuracy = release.facts, release.lineage.cell, release.measure("accuracy")
    stated: dict[str, Any] = {
        "license": release.terms.license,
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": list(dict.fromkeys([*TAGS, cell.method, cell.variant, cell.student])),
    }
    if facts["dataset"] != CUSTOM:
        stated["datasets"] = [facts["dataset"]]
    if accuracy is not None:
        measured = {
            "type": "accuracy",
            "value": round(accuracy / 100, 6),
            "name": f"accuracy, {release.deploy}",
        }
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": facts["dataset"], "type": facts["dataset"], "split": "test"},
            "metrics": [measured],
        }
        stated["metrics"] = ["accuracy"]
        stated["model-index"] = [{"name": cell.name.replace("/", "-"), "results": [result]}]
    stream, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(stated, stream)
    return f"---\n{stream.getvalue()}---\n"


def _told(release: Release) -> dict[str, Any]:
    """Return what the page is filled with."""
    lineage, facts = release.lineage, release.facts
    cell, card = lineage.cell, lineage.student.card
    channels, side, _ = release.shape
    return {
        "release": release,
        "facts": facts,
        "card": card,
        "cell": cell,
        "deploy": release.deploy,
        "lineage": lineage,
        "pool": lineage.cards.get("pool"),
        "dictionary": lineage.cards.get("dictionary", {}).get("facts"),
        "phi": facts["compensation"],
        "arm": ARMS[cell.variant].summary if cell.variant in ARMS else cell.variant,
        "channels": channels,
        "side": side,
        "shape": ", ".join(str(number) for number in (2, *release.shape)),
        "chosen": _chosen(facts),
        "classes": _listed_classes(release),
        "accuracy": release.measure("accuracy"),
        "interval": _interval(release.measure("accuracy"), lineage.num_images),
        "seeds": [row[f"accuracy_{release.deploy}"] for row in lineage.rows or ()],
        "agreement": release.measure("agreement"),
        "error": release.measure("calibration_error"),
        "bias": release.measure("marginal_bias"),
        "budget": card.get("params", {}).get("budget"),
        "listed": lambda key: ", ".join(f"{name} {it}" for name, it in card.get(key, {}).items()),
        "provenance": _provenance(release),
        **(_of_pool(lineage.cards["pool"], release) if "pool" in lineage.cards else {}),
    }


def _chosen(facts: Mapping[str, Any]) -> str:
    """Return what `build_backbone` has to be told beyond the numbers of classes and channels."""
    stem = facts.get("stem", "cifar")
    chosen = "" if stem == "cifar" else f', stem="{stem}"'
    if facts["student"] not in BACKBONE_NAMES:  # some of another library's are built for one size
        chosen += f", image_size={facts['image_size']}"
    return chosen


def _interval(accuracy: float | None, num_images: int | None) -> str | None:
    """Return Wilson's interval of an accuracy in percent; None: it was not measured."""
    if accuracy is None or num_images is None:
        return None
    right = round(accuracy * num_images / 100)
    found = binomtest(right, num_images).proportion_ci(method="wilson")
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _shown_names(release: Release) -> Sequence[str]:
    """Return what to call the classes on a line of the card: their names, or their numbers."""
    names = release.class_names or map(str, range(release.facts["num_classes"]))
    return [" ".join(name.split()) for name in names]


def _listed_classes(release: Release) -> str:
    shown = [f"{index} {name}" for index, name in enumerate(_shown_names(release))]
    return _some(shown, ", and {} more in `export.json`")


def _some(names: Sequence[str], more: str = " and {} more") -> str:
    rest = len(names) - MOST_CLASSES
    return ", ".join(names[:MOST_CLASSES]) + (more.format(rest) if rest > 0 else "")


def _of_pool(pool: Mapping[str, Any], release: Release) -> dict[str, Any]:
    """Return where a pool is from and how it is shifted."""
    names = _shown_names(release)
    facts, shares = pool["facts"], pool["facts"]["proportions"]
    skipped = facts.get("skipped", {})
    return {
        "source": _source(pool),
        "skipped": [f"{reason} {count}" for reason, count in skipped.items() if count],
        "variation": sum(abs(share - 1 / len(shares)) for share in shares) / 2,
        "proportions": _proportions(shares, names),
        "missing": _some([names[index] for index in facts["missing_classes"]]),
    }


def _source(pool: Mapping[str, Any]) -> str:
    """Return where images are from; of a path its last part, which is no machine's."""
    facts = pool["facts"]
    if "base" in facts:
        base, distinct = title_of(facts["base"]), facts["num_distinct"]
        return f"{distinct:,} images of the {base} pool, resampled and degraded on purpose"
    if not facts.get("num_open_world"):
        return "made from the teacher alone, no photograph"
    told = []
    for block in pool["params"].values():
        open_world = block.get("open_world") if isinstance(block, Mapping) else None
        for part in (open_world.get("sources") or [open_world]) if open_world else ():
            path = part.get("path")
            told.append(part["source"] + (f" `{PurePath(path).name}`" if path else ""))
    parts = f" ({', '.join(told)})" if told else ""
    return f"{facts['num_open_world']:,} of its images are open-world ones{parts}"


def _proportions(shares: Sequence[float], names: Sequence[str]) -> str:
    told = [f"{name}: {100 * share:.1f} %" for name, share in zip(names, shares, strict=True)]
    if len(told) <= MOST_CLASSES:
        return ", ".join(told)
    order = sorted(range(len(shares)), key=lambda index: -shares[index])
    largest = ", ".join(told[index] for index in order[:MOST_LISTED])
    smallest = ", ".join(told[index] for index in order[-MOST_LISTED:])
    return f"largest {largest}; smallest {smallest}"


def _provenance(release: Release) -> list[list[str]]:
    rows = [["artifact", "content (SHA-256)", "card (SHA-256)"]]
    for role, hashes in release.provenance().items():
        stated = hashes["card_sha256"]
        rows.append([role, f"`{hashes['content']}`", f"`{stated}`" if stated else "not at hand"])
    return rows
