"""What an export says of itself: in `export.json` for programs, in `README.md` for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdci.config.catalog import CUSTOM, DATASETS
from kdci.exporting.footprint import Footprint
from kdci.exporting.lineage import Lineage

UNSTATED = "unknown: state it"
UNKNOWN_LICENSE = "unknown"
"""An identifier of Hugging Face's list, for whoever has not said."""


@dataclass(frozen=True)
class Terms:
    """What its owner says of an export.

    Attributes:
        license: Identifier of the model's licence, for Hugging Face.
        data_license: Of the data that the teacher was trained on.
    """

    license: str = UNKNOWN_LICENSE
    data_license: str = UNSTATED


@dataclass(frozen=True)
class Release:
    """An export.

    Attributes:
        lineage: The student and where it comes from.
        deploy: `backbone` or `compensated`: what it answers with.
        formats: What is recorded of each format, by name: `place`, `parity`, versions.
        footprint: Size and speed.
        terms: Licences.
        versions: Of what it was exported with.
    """

    lineage: Lineage
    deploy: str
    formats: Mapping[str, Mapping[str, Any]]
    footprint: Footprint
    terms: Terms = field(default_factory=Terms)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the student's card."""
        return self.lineage.student.facts

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H and W of an image."""
        return self.facts["channels"], self.facts["image_size"], self.facts["image_size"]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the logits; None: nobody stated any."""
        stated = self.facts.get("class_names")
        if stated is not None:
            return tuple(stated)
        spec = DATASETS.get(self.facts["dataset"])  # a card of the time before it had names
        return (spec and spec.stated_names) or None

    @property
    def preprocessing(self) -> str:
        """How a photograph becomes an image that the student takes, in a sentence."""
        side, dataset = self.facts["image_size"], self.facts["dataset"]
        exact, share = f"{side} x {side} pixels", 1.0 if dataset == CUSTOM else None
        if dataset in DATASETS:
            share = DATASETS[dataset].square_share  # None: images have one size
        if share is None:
            return f"Images have exactly {exact}; nothing is cut or resized."
        of = "as large as the image holds" if share == 1 else f"of {share:g} of its shorter side"
        return f"The centred square {of} is resized to {exact}, bilinear with antialiasing."

    def measure(self, name: str) -> float | None:
        """Return a measure of the evaluation in the deployed form; None: it was not measured."""
        value: float | None = (self.lineage.row or {}).get(f"{name}_{self.deploy}")
        return value

    def provenance(self) -> dict[str, Any]:
        """Return what identifies each artifact that the student comes from."""
        found = {}
        for role in ("student", "teacher", "pool", "dictionary", "evaluation"):
            card = self.lineage.cards.get(role, {"content": self.lineage.parent(role)})
            if card["content"] is not None:
                found[role] = {key: card.get(key) for key in ("content", "card_sha256")}
        return found

    def asdict(self) -> dict[str, Any]:
        """Return `export.json`."""
        card = self.lineage.student.card
        return {
            "cell": self.lineage.cell.asdict(),
            "name": self.lineage.cell.name,
            "deploy": self.deploy,
            "input": {"dtype": "float32", "shape": ["N", *self.shape], "range": [0, 1]},
            "output": {"dtype": "float32", "shape": ["N", self.facts["num_classes"]]},
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": self.preprocessing,
            "accuracy": self.measure("accuracy"),
            "agreement": self.measure("agreement"),
            "num_test_images": self.lineage.num_images,
            "formats": {name: dict(facts) for name, facts in self.formats.items()},
            "footprint": self.footprint.asdict(),
            "license": self.terms.license,
            "data_license": self.terms.data_license,
            "commit": card.get("code", {}).get("revision", "unknown"),
            "params_hash": card.get("params_hash"),
            "seeds": card.get("seeds", {}),
            "artifacts": self.provenance(),
            "versions": dict(self.versions),
        }
