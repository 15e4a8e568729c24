"""A pool as files: its images, those held out, the teacher's logits, the state of its source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.mapped_images import MappedImages, save_npy_chunks
from kdci.models import PixelModel
from kdci.store.artifacts import Artifact, Draft
from kdci.store.checkpoints import load_state, save_state
from kdci.substitution.bank_source import BankSource
from kdci.training.evaluation import PREDICTION_BATCH, class_proportions, predict_logits

IMAGES, HOLDOUT = "images.npy", "holdout.npy"
_PREDICTIONS = "predictions.safetensors"
_STATE = "source"


def write_pool(
    draft: Draft,
    *,
    teacher: PixelModel,
    images: Iterable[Tensor],
    holdout: Iterable[Tensor],
    num_holdout: int,
    source: BankSource,
    kept: Tensor,
    tail: Path,
) -> dict[str, Any]:
    """Write a pool's files; return its facts: how many images, and how they are shifted.

    Images come and go in parts: the pool may be larger than memory.

    Args:
        draft: The pool's artifact.
        teacher: Frozen.
        images: What the student may see, in parts, uint8 (B, C, H, W).
        holdout: What it may not, the same.
        num_holdout: Images of ``holdout``.
        source: Goes on with ``images`` as its bank.
        kept: Where they lay in its bank so far; (M,).
        tail: A new file for what would be added to that bank.
    """
    file = draft.folder / IMAGES
    save_npy_chunks(images, file, num_images=len(kept))
    save_npy_chunks(holdout, draft.folder / HOLDOUT, num_images=num_holdout)
    logits = predict_logits(
        lambda batch: teacher(batch).logits,
        MappedImages(file),
        batch_size=PREDICTION_BATCH,
        device=next(teacher.parameters()).device,
    )
    draft.save_tensors(_PREDICTIONS, {"logits": logits})
    source.adopt(ImageBank(tail, shape=source.bank.shape, base=file), kept)
    save_state(draft.folder / _STATE, source.state_dict())
    proportions = class_proportions(logits.argmax(dim=1), logits.shape[1])
    return {
        "num_images": len(kept),
        "num_holdout": num_holdout,
        "num_open_world": source.num_open_world,
        "proportions": proportions.tolist(),
        "confidence": float(logits.softmax(dim=1).max(dim=1).values.mean()),
        "missing_classes": (proportions == 0).nonzero().flatten().tolist(),
    }


def pool_logits(pool: Artifact) -> Tensor:
    """Return the teacher's logits of a pool's images; (M, K)."""
    return pool.tensors(_PREDICTIONS)["logits"]


def continue_source(source: BankSource, pool: Artifact, *, seed: int) -> None:
    """Have a source go on from a pool's state, with random streams of its own."""
    source.load_state_dict(load_state(pool.path / _STATE))
    source.reseed(seed)


def split_holdout(size: int, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the rows that the student may see, in order, and those that are held out."""
    num_holdout = max(1, round(share * size))
    held = torch.randperm(size, generator=random)[:num_holdout].sort().values
    kept = torch.ones(size, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().flatten(), held
