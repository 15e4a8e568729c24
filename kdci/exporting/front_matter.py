"""The metadata at the head of a model card, as Hugging Face reads it."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kdci.config.catalog import CUSTOM
from kdci.errors import IntegrityError
from kdci.exporting.release import Release

FENCE = "---\n"
TAGS = ("image-classification", "knowledge-distillation", "data-free", "kdci")


def front_matter(release: Release) -> str:
    """Return the metadata between its fences, read again to be sure of it.

    Raises:
        IntegrityError: What is read again is something else.
    """
    stated = metadata(release)
    stream, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(stated, stream)
    text = f"{FENCE}{stream.getvalue()}{FENCE}"
    if read_front_matter(text) != stated:
        raise IntegrityError("README.md", "its front matter does not read as it was meant")
    return text


def read_front_matter(text: str) -> dict[str, Any]:
    """Return the metadata of a model card.

    Raises:
        IntegrityError: There is none, or it is no YAML.
    """
    head, _, rest = text.partition(FENCE)
    try:
        found = YAML(typ="safe", pure=True).load(rest.partition(f"\n{FENCE}")[0])
    except YAMLError:
        found = None
    if head or not isinstance(found, dict):
        raise IntegrityError("README.md", "has no front matter")
    return found


def metadata(release: Release) -> dict[str, Any]:
    """Return licence, tags, data and, where it was measured, accuracy as a share of 1."""
    facts, cell = release.facts, release.lineage.cell
    found: dict[str, Any] = {
        "license": release.terms.license,
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": list(dict.fromkeys([*TAGS, cell.method, cell.variant, cell.student])),
    }
    if facts["dataset"] != CUSTOM:
        found["datasets"] = [facts["dataset"]]
    if release.accuracy is not None:
        found["metrics"] = ["accuracy"]
        found["model-index"] = [{"name": _name(release), "results": [_result(release)]}]
    return found


def _name(release: Release) -> str:
    return release.lineage.cell.name.replace("/", "-")


def _result(release: Release) -> dict[str, Any]:
    assert release.accuracy is not None
    dataset = release.facts["dataset"]
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": dataset, "type": dataset, "split": "test"},
        "metrics": [
            {
                "type": "accuracy",
                "value": round(release.accuracy / 100, 6),
                "name": f"accuracy, {release.deploy}",
            }
        ],
    }
