"""Networks built from a seed or from an artifact."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from kdci.artifacts import Artifact
from kdci.catalog import DatasetSpec
from kdci.errors import IntegrityError, UserError
from kdci.models import PixelModel, build_pixel_model
from kdci.runtime import require_finite

MODEL_FILE = "model.safetensors"


def build_network(
    backbone: str,
    spec: DatasetSpec,
    *,
    seed: int,
    device: torch.device | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> PixelModel:
    """Build a freshly initialised network; the weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_pixel_model(backbone, spec, autocast_dtype=autocast_dtype)
    return model.to(device)


def load_teacher(
    artifact: Artifact,
    spec: DatasetSpec,
    *,
    device: torch.device | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> PixelModel:
    """Load a teacher, frozen and in eval mode.

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
    model = build_network(
        facts["backbone"], own, seed=0, device=device, autocast_dtype=autocast_dtype
    )
    load_weights(model, artifact, MODEL_FILE)
    require_finite(model, str(artifact.path))
    return model.eval().requires_grad_(requires_grad=False)


def load_weights(module: nn.Module, artifact: Artifact, name: str, *, prefix: str = "") -> None:
    """Load the safetensors file ``name`` of an artifact into ``module``.

    Raises:
        IntegrityError: Tensors are missing, left over, or of another shape.
    """
    try:
        tensors = artifact.tensors(name)
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise IntegrityError(str(artifact.path / name), first, "rebuild it") from None
