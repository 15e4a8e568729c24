"""Networks built from a seed or from an artifact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdci.config.catalog import DatasetSpec
from kdci.errors import IntegrityError, UserError
from kdci.models import PixelModel, build_pixel_model, load_state
from kdci.store.artifacts import Artifact
from kdci.training.runtime import require_finite

MODEL_FILE = "model.safetensors"
LEAST_ACCURACY, MOST_ACCURACY = 0.01, 0.999
"""Bounds of what a method may be told of the teacher's accuracy: neither 0 nor 1."""


def build_network(
    backbone: str,
    spec: DatasetSpec,
    *,
    seed: int,
    device: torch.device | None = None,
    **options: Any,
) -> PixelModel:
    """Build a freshly initialised network; the weights depend on ``seed`` alone.

    Args:
        backbone: Name of the backbone, see ``kdci.models.build_backbone``.
        spec: Dataset whose classes, image shape and normalisation the network takes.
        seed: Seed of the weights.
        device: Where the network goes.
        options: First layers and format, as of ``kdci.models.build_pixel_model``.

    Raises:
        UserError: Another library's classifier is unknown or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_pixel_model(backbone, spec, **options)
    return model.to(device)


def load_teacher(
    artifact: Artifact,
    spec: DatasetSpec,
    **options: Any,
) -> PixelModel:
    """Load a teacher, frozen and in eval mode.

    Args:
        artifact: The teacher.
        spec: Dataset that it has to fit.
        options: Device and format, as of ``build_network``.

    Raises:
        UserError: It was trained for another number of classes or another image shape.
        IntegrityError: Its tensors are not those of its backbone.
        NumericError: A weight is not finite.
    """
    facts = artifact.facts
    for fact in ("num_classes", "channels", "image_size"):
        value = getattr(spec, fact)
        if facts[fact] != value:
            raise UserError(
                str(artifact.path),
                f"the teacher has {facts[fact]} {fact}, {spec.name} has {value}",
                "choose the dataset it was trained on in data.name",
            )
    # The normalisation is the teacher's own: what it was trained with, on its card.
    own = replace(spec, mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    model = build_network(facts["backbone"], own, seed=0, stem=stem_of(artifact), **options)
    load_weights(model, artifact, MODEL_FILE)
    require_finite(model, str(artifact.path))
    return model.eval().requires_grad_(requires_grad=False)


def stem_of(artifact: Artifact) -> str:
    """Return the first layers that a teacher or a student has, as its card tells.

    A card without the fact is of the time when there was one stem.
    """
    return str(artifact.facts.get("stem", "cifar"))


def stated_accuracy(artifact: Artifact) -> float | None:
    """Return a teacher's accuracy as its card states it, in (0, 1); None: it does not.

    Without test data the training accuracy stands in; a teacher imported without data has neither.
    """
    stated = (artifact.facts["accuracy"], artifact.facts["train_accuracy"])
    percent = next((value for value in stated if value is not None), None)
    return None if percent is None else min(max(percent / 100, LEAST_ACCURACY), MOST_ACCURACY)


def load_weights(module: nn.Module, artifact: Artifact, name: str, *, prefix: str = "") -> None:
    """Load the safetensors file ``name`` of an artifact into ``module``.

    Raises:
        IntegrityError: Tensors are missing, left over, or of another shape.
    """
    try:
        tensors = artifact.tensors(name)
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        load_state(module, own)
    except (RuntimeError, TypeError, ValueError) as error:
        first = str(error).splitlines()[-1].strip()
        raise IntegrityError(str(artifact.path / name), first, "rebuild it") from None
