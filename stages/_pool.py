"""What stages that see a pool share: the teacher, the bank, the method's context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages._session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.artifacts import Artifact
    from kdci.data.image_bank import ImageBank
    from kdci.models import PixelModel
    from kdci.runtime import Runtime
    from kdci.substitution.base import SourceContext, SubstitutionSource

LEAST_ACCURACY, MOST_ACCURACY = 0.01, 0.999
"""Bounds of what a method may be told of the teacher's accuracy: neither 0 nor 1."""


def open_teacher(session: Session, artifact: Artifact, runtime: Runtime) -> PixelModel:
    """Load the cell's teacher, frozen."""
    from kdci.pretrained import load_teacher

    return load_teacher(
        artifact,
        session.params.data.spec,
        device=runtime.device,
        autocast_dtype=runtime.autocast_dtype,
    )


def pool_bank(session: Session, *, base: Path | None, tail: str = "bank.bin") -> ImageBank:
    """Open the bank whose growing part lies in the work folder."""
    from kdci.data.image_bank import ImageBank

    spec = session.params.data.spec
    shape = (spec.channels, spec.image_size, spec.image_size)
    return ImageBank(session.folder / tail, shape=shape, base=base)


def source_context(
    session: Session,
    artifact: Artifact,
    teacher: PixelModel,
    bank: ImageBank,
    *,
    seed: int,
    skipped: dict[str, int] | None = None,
) -> SourceContext:
    """Return what a method is built from.

    Args:
        session: The running stage.
        artifact: The teacher's artifact, for its accuracy.
        teacher: Frozen.
        bank: Where the method's images live.
        seed: Seed of the method's random streams.
        skipped: Receives how many open-world files could not be read, by reason.
    """
    from kdci.substitution.base import SourceContext

    spec = session.params.data.spec
    block = session.params.method(str(session.identity.cell["method"]))
    open_world = getattr(block, "open_world", None)

    def load() -> Tensor:
        from kdci.data.open_world import load_open_world

        if open_world is None:
            raise ValueError("this method has no open_world block")
        pool = load_open_world(
            open_world.source,
            path=Path(open_world.path) if open_world.path else None,
            num_images=open_world.num_images,
            image_size=spec.image_size,
            channels=spec.channels,
            seed=seed,
        )
        if skipped is not None:
            skipped.update(pool.skipped)
        return pool.images

    # The accuracy is metadata of the teacher; without test data its training accuracy stands in.
    accuracy = artifact.facts["accuracy"] or artifact.facts["train_accuracy"]
    bounded = min(max(accuracy / 100, LEAST_ACCURACY), MOST_ACCURACY)
    return SourceContext(
        teacher=teacher,
        spec=spec,
        bank=bank,
        seed=seed,
        teacher_accuracy=bounded,
        open_world=load,
    )


def build_pool_source(session: Session, context: SourceContext) -> SubstitutionSource:
    """Build what makes the cell's images: its method's source, or that of a known shift."""
    from kdci.substitution.registry import build_source
    from kdci.substitution.resampled import ResampledSource

    params, method = session.params, str(session.identity.cell["method"])
    if method in params.grid.shifts:
        assert params.shift is not None
        return ResampledSource(context, temperature=params.shift.temperature)
    return build_source(method, params.method(method), context)


def teacher_logits(teacher: PixelModel, images: Tensor) -> Tensor:
    """Return the teacher's logits of uint8 images, on the CPU."""
    from kdci.evaluation import PREDICTION_BATCH, predict_logits

    device = next(teacher.parameters()).device
    return predict_logits(
        lambda batch: teacher(batch).logits, images, batch_size=PREDICTION_BATCH, device=device
    )


def write_pool(
    session: Session,
    *,
    images: Tensor,
    holdout: Tensor,
    logits: Tensor,
    source: SubstitutionSource,
    kept: Tensor,
    facts: dict[str, Any],
) -> None:
    """Write a pool: images, hold-out, the teacher's logits, the source's state.

    Args:
        session: The running stage.
        images: What the student may see, uint8 (M, C, H, W).
        holdout: What it may not.
        logits: The teacher's, of ``images``.
        source: Goes on with ``images`` as its bank.
        kept: Where they lay in its bank so far; (M,).
        facts: For the card, beside those of any pool.
    """
    from kdci.checkpoints import save_state
    from kdci.data.image_bank import save_npy

    seeds = {"pool_seed": int(session.identity.cell["pool_seed"])}
    with session.new_artifact("pool", seeds=seeds) as draft:
        save_npy(images, draft.folder / "images.npy")
        save_npy(holdout, draft.folder / "holdout.npy")
        draft.save_tensors("predictions.safetensors", {"logits": logits})
        stored = pool_bank(session, base=draft.folder / "images.npy", tail="kept.bin")
        source.adopt(stored, kept)
        save_state(draft.folder / "source", source.state_dict())
        draft.card["facts"] = {
            "num_images": len(images),
            "num_holdout": len(holdout),
            "num_open_world": source.num_open_world,
            **_shift_facts(logits),
            **facts,
        }


def _shift_facts(logits: Tensor) -> dict[str, Any]:
    """Return how the pool is shifted, as the teacher sees it."""
    from kdci.evaluation import class_proportions

    proportions = class_proportions(logits.argmax(dim=1), logits.shape[1])
    return {
        "proportions": proportions.tolist(),
        "confidence": float(logits.softmax(dim=1).max(dim=1).values.mean()),
        "missing_classes": (proportions == 0).nonzero().flatten().tolist(),
    }
