"""shift: a pool with a known shift, resampled from a method's pool and degraded.

What comes out is a pool like any other, with the held-out part degraded alike but balanced as the
base's is: only what the student sees follows the long tail.
"""

from __future__ import annotations

import sys

from stages.main import main
from stages.session import Session


def run(session: Session) -> None:
    """Resample and degrade the base's pool; save it as the pool of this shift."""
    import torch

    from kdci.data.bank.image_bank import ImageBank
    from kdci.data.bank.mapped_images import MappedImages
    from kdci.deconfounding.known_shift import degrade_chunks, resample_rows
    from kdci.errors import UserError
    from kdci.models.networks import Networks
    from kdci.models.pretrained import stated_accuracy
    from kdci.substitution.bank_source import BankSource
    from kdci.substitution.base import SourceContext
    from kdci.substitution.pool_files import pool_logits, write_pool
    from kdci.training.runtime import derive_seed

    point, params = session.node.point, session.params
    name, pool_seed = str(point["method"]), int(point["pool_seed"])
    spec, of_all, known = params.data.spec, params.shift, params.shifts[name]
    assert of_all is not None
    teacher_artifact, base = session.parent("teacher"), session.parent("base")
    networks = Networks(session.start_runtime(), session.layout.formats, session.note_format)
    teacher = networks.teacher(teacher_artifact, spec)
    # One seed for all shifts of a pool: they share rare classes, and images as far as counts allow.
    seed = derive_seed(pool_seed, "shift")
    try:
        rows = resample_rows(
            pool_logits(base).argmax(dim=1),
            num_images=of_all.num_images,
            num_classes=spec.num_classes,
            imbalance=known.imbalance,
            seed=seed,
        )
    except ValueError as error:
        fix = "enlarge shift.num_images or the base's pool, or lower the imbalance"
        raise UserError(f"shifts.{name}", str(error), fix) from None
    images, holdout = MappedImages(base.file("images.npy")), MappedImages(base.file("holdout.npy"))
    degraded, degraded_holdout = (
        degrade_chunks(
            chunks,
            blur=known.blur,
            noise=known.noise,
            contrast=known.contrast,
            seed=derive_seed(seed, "noise", role),
        )
        for role, chunks in {
            "pool": images.chunks(rows),
            "holdout": holdout.chunks(torch.arange(len(holdout))),
        }.items()
    )
    context = SourceContext(
        teacher=teacher,
        spec=spec,
        bank=ImageBank(session.folder / "bank.bin", shape=spec.image_shape),
        seed=seed,
        teacher_accuracy=stated_accuracy(teacher_artifact),
    )
    with session.new_artifact("pool", seeds={"pool_seed": pool_seed}) as draft:
        of_any_pool = write_pool(
            draft,
            teacher=teacher,
            images=degraded,
            holdout=degraded_holdout,
            num_holdout=len(holdout),
            source=BankSource(context, of_all),
            kept=torch.arange(len(rows)),
            tail=session.folder / "kept.bin",
        )
        draft.save_json("skipped.json", {})
        draft.card["facts"] = {
            **of_any_pool,
            "method": name,
            "teacher": str(point["teacher"]),
            "base": of_all.base,
            "num_distinct": len(set(rows.tolist())),
            "num_open_world": len(rows) if base.facts["num_open_world"] else 0,
            "skipped": {},
        }


if __name__ == "__main__":
    sys.exit(main("shift", run))
