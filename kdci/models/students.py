"""Distilled students from their artifacts: the one a user deploys, and its snapshots."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdci.config.catalog import spec_of_facts
from kdci.deconfounding.compensation import Compensation
from kdci.models import PixelModel
from kdci.models.pretrained import MODEL_FILE, build_network, load_weights, stem_of
from kdci.store.artifacts import Artifact, open_artifact

COMPENSATION_FILE = "compensation.safetensors"
DEPLOYS = ("backbone", "compensated")


class Student(nn.Module):
    """A distilled student as it is deployed.

    Attributes:
        backbone: f_S, with its normalisation.
        compensation: phi, or None for a vanilla student.
        deploy: `backbone`: answers with f_S alone; `compensated`: with phi(f_S, F(z)).
    """

    def __init__(
        self, backbone: PixelModel, compensation: Compensation | None, *, deploy: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.compensation = compensation
        self.deploy = deploy

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W), float32 in [0, 1]."""
        logits: Tensor = self.backbone(images).logits
        if self.deploy == "compensated" and self.compensation is not None:
            return self.compensated(logits)
        return logits

    def compensated(self, logits: Tensor) -> Tensor:
        """Return phi of raw logits; a vanilla student's logits stay as they are."""
        if self.compensation is None:
            return logits
        compensated: Tensor = self.compensation(logits)
        return compensated


def load_student(path: Path | str, *, deploy: str = "backbone") -> Student:
    """Load a student artifact for use, in eval mode.

    Args:
        path: Folder of the artifact, as `distill` wrote it.
        deploy: `backbone` or `compensated`.

    Raises:
        UserError: There is no student there.
        IntegrityError: A file is damaged.
        ValueError: ``deploy`` is neither of the two.
    """
    if deploy not in DEPLOYS:
        raise ValueError(f"unknown deploy {deploy!r}, one of {DEPLOYS}")
    student = student_of(open_artifact(Path(path), kind="student"))
    student.deploy = deploy
    return student


def student_of(artifact: Artifact) -> Student:
    """Return the finished student of an open artifact, in eval mode."""
    return _loaded(artifact, (MODEL_FILE, ""), (COMPENSATION_FILE, ""))


def snapshot_of(artifact: Artifact, file: str) -> Student:
    """Return the student as it was at a snapshot of its distillation, in eval mode."""
    return _loaded(artifact, (file, "student/"), (file, "compensation/"))


def _loaded(artifact: Artifact, backbone_at: tuple[str, str], phi_at: tuple[str, str]) -> Student:
    """Return a student, its weights from a file each, where they have a prefix."""
    facts = artifact.facts
    spec = spec_of_facts(facts)
    backbone = build_network(facts["student"], spec, seed=0, stem=stem_of(artifact))
    load_weights(backbone, artifact, backbone_at[0], prefix=backbone_at[1])
    compensation = None
    if facts["compensation"] is not None:
        shape = dict(facts["compensation"])
        num_prototypes, dimension = shape.pop("num_prototypes"), shape.pop("dimension")
        compensation = Compensation(
            torch.zeros(num_prototypes, dimension),
            torch.full((num_prototypes,), 1 / num_prototypes),
            num_classes=spec.num_classes,
            **shape,
        )
        load_weights(compensation, artifact, phi_at[0], prefix=phi_at[1])
    return Student(backbone, compensation, deploy="backbone").eval()
