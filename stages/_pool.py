"""What stages that see a pool share: the teacher, the bank, the method's context."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages._formats import format_of
from stages._session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.data.bank.image_bank import ImageBank
    from kdci.data.datasets.labelled import ImageSet
    from kdci.data.open_world.pool import OpenWorldPool
    from kdci.models import PixelModel
    from kdci.store.artifacts import Artifact
    from kdci.substitution.base import SourceContext, SubstitutionSource
    from kdci.training.runtime import Runtime

LEAST_ACCURACY, MOST_ACCURACY = 0.01, 0.999
"""Bounds of what a method may be told of the teacher's accuracy: neither 0 nor 1."""


def open_teacher(session: Session, artifact: Artifact, runtime: Runtime) -> PixelModel:
    """Load the cell's teacher, frozen."""
    from kdci.models.pretrained import load_teacher, stem_of

    backbone = str(artifact.facts["backbone"])
    chosen = format_of(session, backbone, training=False, stem=stem_of(artifact))
    return load_teacher(
        artifact,
        session.params.data.spec,
        device=runtime.device,
        autocast_dtype=chosen.autocast_dtype,
        channels_last=chosen.channels_last,
    )


def pool_bank(session: Session, *, base: Path | None, tail: str = "bank.bin") -> ImageBank:
    """Open the bank whose growing part lies in the work folder."""
    from kdci.data.bank.image_bank import ImageBank

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
    method = str(session.node.point["method"])
    open_world = getattr(session.params.method(method), "open_world", None)

    def load() -> OpenWorldPool:
        from kdci.data.open_world.candidates import PoolPart
        from kdci.data.open_world.pool import OpenWorldPool
        from kdci.data.open_world.scoring_engine import find_engine

        if open_world is None:
            raise ValueError("this method has no open_world block")
        return OpenWorldPool(
            [
                PoolPart(part.source, Path(part.path) if part.path else None, part.num_images)
                for part in open_world.parts
            ],
            image_size=spec.image_size,
            channels=spec.channels,
            seed=seed,
            num_images=open_world.num_images,
            max_bad_fraction=open_world.max_bad_fraction,
            engine=find_engine(open_world.engine, f"methods.{method}.open_world.engine"),
        )

    # The accuracy is metadata of the teacher; without test data its training accuracy stands in.
    # A teacher imported without data states neither.
    stated = (artifact.facts["accuracy"], artifact.facts["train_accuracy"])
    accuracy = next((value for value in stated if value is not None), None)
    bounded = None if accuracy is None else _bounded(accuracy)
    return SourceContext(
        teacher=teacher,
        spec=spec,
        bank=bank,
        seed=seed,
        teacher_accuracy=bounded,
        open_world=load,
        skipped={} if skipped is None else skipped,
    )


def _bounded(percent: float) -> float:
    return min(max(percent / 100, LEAST_ACCURACY), MOST_ACCURACY)


def build_pool_source(session: Session, context: SourceContext) -> SubstitutionSource:
    """Build what makes the cell's images: its method's source, or that of a known shift."""
    from kdci.substitution.resampled import ResampledSource

    params, method = session.params, str(session.node.point["method"])
    if method in params.grid.shifts:
        assert params.shift is not None
        return ResampledSource(context, temperature=params.shift.temperature)
    cell = session.node.point
    student = str(cell["student"]) if "student" in cell else None
    block = params.method(method, teacher=str(cell["teacher"]), student=student)
    return block.source(context)


def teacher_logits(teacher: PixelModel, images: ImageSet) -> Tensor:
    """Return the teacher's logits of uint8 images, on the CPU; (M, K)."""
    from kdci.training.evaluation import PREDICTION_BATCH, predict_logits

    device = next(teacher.parameters()).device
    return predict_logits(
        lambda batch: teacher(batch).logits, images, batch_size=PREDICTION_BATCH, device=device
    )


def write_pool(
    session: Session,
    *,
    teacher: PixelModel,
    images: Iterable[Tensor],
    holdout: Iterable[Tensor],
    num_holdout: int,
    source: SubstitutionSource,
    kept: Tensor,
    facts: dict[str, Any],
) -> None:
    """Write a pool: images, hold-out, the teacher's logits, the source's state.

    Images come and go in parts: the pool may be larger than memory.

    Args:
        session: The running stage.
        teacher: Frozen.
        images: What the student may see, in parts, uint8 (B, C, H, W).
        holdout: What it may not, the same.
        num_holdout: Images of ``holdout``.
        source: Goes on with ``images`` as its bank.
        kept: Where they lay in its bank so far; (M,).
        facts: For the card, beside those of any pool.
    """
    from kdci.data.bank.mapped_images import MappedImages, save_npy_chunks
    from kdci.store.checkpoints import save_state

    seeds = {"pool_seed": int(session.node.point["pool_seed"])}
    with session.new_artifact("pool", seeds=seeds) as draft:
        file = draft.folder / "images.npy"
        save_npy_chunks(images, file, num_images=len(kept))
        save_npy_chunks(holdout, draft.folder / "holdout.npy", num_images=num_holdout)
        logits = teacher_logits(teacher, MappedImages(file))
        draft.save_tensors("predictions.safetensors", {"logits": logits})
        draft.save_json("skipped.json", facts.get("skipped", {}))
        stored = pool_bank(session, base=file, tail="kept.bin")
        source.adopt(stored, kept)
        save_state(draft.folder / "source", source.state_dict())
        draft.card["facts"] = {
            "num_images": len(kept),
            "num_holdout": num_holdout,
            "num_open_world": source.num_open_world,
            **_shift_facts(logits),
            **facts,
        }


def _shift_facts(logits: Tensor) -> dict[str, Any]:
    """Return how the pool is shifted, as the teacher sees it."""
    from kdci.training.evaluation import class_proportions

    proportions = class_proportions(logits.argmax(dim=1), logits.shape[1])
    return {
        "proportions": proportions.tolist(),
        "confidence": float(logits.softmax(dim=1).max(dim=1).values.mean()),
        "missing_classes": (proportions == 0).nonzero().flatten().tolist(),
    }
