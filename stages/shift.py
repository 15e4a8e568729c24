"""shift: a pool with a known shift, resampled from a method's pool and degraded.

What comes out is a pool like any other, with the held-out part degraded alike but balanced as the
base's is: only what the student sees follows the long tail.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages._main import main
from stages._pool import (
    build_pool_source,
    open_teacher,
    pool_bank,
    source_context,
    write_pool,
)
from stages._session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.store.artifacts import Artifact


def run(session: Session) -> None:
    """Resample and degrade the base's pool; save it as the pool of this shift."""
    import torch

    from kdci.data.bank.mapped_images import MappedImages
    from kdci.deconfounding.known_shift import degrade_chunks
    from kdci.training.runtime import derive_seed

    cell, params = session.node.point, session.params
    teacher_name, name = str(cell["teacher"]), str(cell["method"])
    pool_seed = int(cell["pool_seed"])
    assert params.shift is not None
    known = params.shifts[name]
    teacher_artifact = session.parent("teacher")
    base = session.parent("base")
    runtime = session.start_runtime()
    teacher = open_teacher(session, teacher_artifact, runtime)
    # One seed for all shifts of a pool: they share rare classes, and images as far as counts allow.
    seed = derive_seed(pool_seed, "shift")
    holdout = MappedImages(base.file("holdout.npy"))
    rows = _rows(session, base, num_images=params.shift.num_images, seed=seed)

    def degraded(role: str, images: MappedImages, rows: Tensor) -> Iterator[Tensor]:
        return degrade_chunks(
            images.chunks(rows),
            blur=known.blur,
            noise=known.noise,
            contrast=known.contrast,
            seed=derive_seed(seed, "noise", role),
        )

    bank = pool_bank(session, base=None)
    context = source_context(session, teacher_artifact, teacher, bank, seed=seed)
    source = build_pool_source(session, context)
    facts = {
        "method": name,
        "teacher": teacher_name,
        "base": params.shift.base,
        "num_distinct": len(set(rows.tolist())),
        "num_open_world": len(rows) if base.facts["num_open_world"] else 0,
        "skipped": {},
    }
    write_pool(
        session,
        teacher=teacher,
        images=degraded("pool", MappedImages(base.file("images.npy")), rows),
        holdout=degraded("holdout", holdout, torch.arange(len(holdout))),
        num_holdout=len(holdout),
        source=source,
        kept=torch.arange(len(rows)),
        facts=facts,
    )


def _rows(session: Session, base: Artifact, *, num_images: int, seed: int) -> Tensor:
    """Choose rows of the base's pool by the teacher's classes."""
    from kdci.deconfounding.known_shift import resample_rows
    from kdci.errors import UserError

    classes = base.tensors("predictions.safetensors")["logits"].argmax(dim=1)
    name = str(session.node.point["method"])
    try:
        return resample_rows(
            classes,
            num_images=num_images,
            num_classes=session.params.data.spec.num_classes,
            imbalance=session.params.shifts[name].imbalance,
            seed=seed,
        )
    except ValueError as error:
        fix = "enlarge shift.num_images or the base's pool, or lower the imbalance"
        raise UserError(f"shifts.{name}", str(error), fix) from None


if __name__ == "__main__":
    sys.exit(main("shift", run))
