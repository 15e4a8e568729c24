"""What an export says of itself: in `export.json` for programs, in `README.md` for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kdci.config.catalog import CUSTOM, DATASETS
from kdci.exporting.footprint import Size
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
class Footprint:
    """Size and speed of student and teacher on one machine.

    Attributes:
        sizes: By `student` and, where it is at hand, `teacher`.
        latencies: Median milliseconds of a forward pass, by batch size and by the same names.
        threads: Of torch while they were measured.
        processor: Name of the processor.
    """

    sizes: Mapping[str, Size]
    latencies: Mapping[int, Mapping[str, float]]
    threads: int
    processor: str

    def asdict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "sizes": {name: asdict(size) for name, size in self.sizes.items()},
            "median_latency_ms": {
                f"batch {size}": dict(of_batch) for size, of_batch in self.latencies.items()
            },
            "threads": self.threads,
            "processor": self.processor,
            "device": "cpu",
        }


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
        _, side, _ = self.shape
        share, exact = _square_share(self.facts["dataset"]), f"{side} x {side} pixels"
        if share is None:
            return f"Images have exactly {exact}; nothing is cut or resized."
        of = "as large as the image holds" if share == 1 else f"of {share:g} of its shorter side"
        return f"The centred square {of} is resized to {exact}, bilinear with antialiasing."

    @property
    def accuracy(self) -> float | None:
        """Percent of the test split in the deployed form; None: it was not measured."""
        return self.measure("accuracy")

    def measure(self, name: str) -> float | None:
        """Return a measure of the evaluation in the deployed form; None: it was not measured."""
        if self.lineage.scores is None:
            return None
        value: float | None = self.lineage.scores.row.get(f"{name}_{self.deploy}")
        return value

    def provenance(self) -> dict[str, Any]:
        """Return what identifies each artifact that the student comes from."""
        lineage = self.lineage
        cards = {
            "student": lineage.student.card,
            "teacher": None if lineage.teacher is None else lineage.teacher.card,
            "pool": lineage.pool,
            "dictionary": lineage.dictionary,
            "evaluation": None if lineage.scores is None else lineage.scores.card,
        }
        found = {}
        for role, card in cards.items():
            content = lineage.parent(role) if card is None else card["content"]
            if content is not None:
                stated = None if card is None else card["card_sha256"]
                found[role] = {"content": content, "card_sha256": stated}
        return found

    def asdict(self) -> dict[str, Any]:
        """Return `export.json`."""
        card, scores = self.lineage.student.card, self.lineage.scores
        return {
            "cell": self.lineage.cell.asdict(),
            "name": self.lineage.cell.name,
            "deploy": self.deploy,
            "input": {"dtype": "float32", "shape": ["N", *self.shape], "range": [0, 1]},
            "output": {"dtype": "float32", "shape": ["N", self.facts["num_classes"]]},
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": self.preprocessing,
            "accuracy": self.accuracy,
            "agreement": self.measure("agreement"),
            "num_test_images": None if scores is None else scores.num_images,
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


def _square_share(dataset: str) -> float | None:
    """Return the share of the shorter side that is read; None: images have one size."""
    if dataset == CUSTOM:
        return 1.0
    return DATASETS[dataset].square_share if dataset in DATASETS else None
