"""substitute: make or choose the substitution pool, as far as that needs no student."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdci.config.catalog import DatasetSpec
from kdci.config.open_world import OpenWorld
from stages.main import main
from stages.session import Session

if TYPE_CHECKING:
    from kdci.data.open_world.pool import OpenWorldPool


def run(session: Session) -> None:
    """Run the method's preparation; save pool, hold-out, teacher's logits and method state."""
    from kdci.data.bank.image_bank import ImageBank
    from kdci.models.networks import Networks
    from kdci.models.pretrained import stated_accuracy
    from kdci.substitution.base import SourceContext
    from kdci.substitution.pool_files import split_holdout, write_pool
    from kdci.training.runtime import derive_seed, generator

    point, params = session.node.point, session.params
    method, pool_seed = str(point["method"]), int(point["pool_seed"])
    spec, block = params.data.spec, params.method(method, teacher=str(point["teacher"]))
    teacher_artifact = session.parent("teacher")
    networks = Networks(session.start_runtime(), session.layout.formats, session.note_format)
    teacher = networks.teacher(teacher_artifact, spec)
    bank = ImageBank(session.folder / "bank.bin", shape=spec.image_shape)
    seed = derive_seed(pool_seed, "pool", method)
    skipped: dict[str, int] = {}
    open_world = partial(_open_world, getattr(block, "open_world", None), spec, method, seed)
    context = SourceContext(
        teacher=teacher,
        spec=spec,
        bank=bank,
        seed=seed,
        teacher_accuracy=stated_accuracy(teacher_artifact),
        open_world=open_world,
        skipped=skipped,
    )
    source = block.source(context)
    state = session.resume()
    if state is not None:
        source.load_state_dict(state["source"])
    else:
        bank.truncate(0)  # a run killed before its first checkpoint leaves images of its own
    done = 0 if state is None else int(state["done"])

    def logged() -> Iterator[int]:
        nonlocal done
        for values in source.prepare():
            done += 1
            session.metrics.log(done, **values)
            yield done

    session.run_loop(
        logged(),
        total=source.num_preparations,
        state=lambda: {"source": source.state_dict(), "done": done},
        label="substituting",
    )
    kept, held = split_holdout(len(bank), params.pool.holdout, generator(seed, "holdout"))
    with session.new_artifact("pool", seeds={"pool_seed": pool_seed}) as draft:
        of_any_pool = write_pool(
            draft,
            teacher=teacher,
            images=bank.chunks(kept),
            holdout=bank.chunks(held),
            num_holdout=len(held),
            source=source,
            kept=kept,
            tail=session.folder / "kept.bin",
        )
        draft.save_json("skipped.json", skipped)
        facts = {"method": method, "teacher": str(point["teacher"]), "skipped": skipped}
        draft.card["facts"] = {**of_any_pool, **facts}


def _open_world(
    block: OpenWorld | None, spec: DatasetSpec, method: str, seed: int
) -> OpenWorldPool:
    """Open the unlabelled images that a method chooses from."""
    from kdci.data.open_world.candidates import parts_of
    from kdci.data.open_world.pool import OpenWorldPool
    from kdci.data.open_world.scoring_engine import find_engine

    if block is None:
        raise ValueError("this method has no open_world block")
    return OpenWorldPool(
        parts_of(block, Path()),
        image_size=spec.image_size,
        channels=spec.channels,
        seed=seed,
        num_images=block.num_images,
        max_bad_fraction=block.max_bad_fraction,
        engine=find_engine(block.engine, f"methods.{method}.open_world.engine"),
    )


if __name__ == "__main__":
    sys.exit(main("substitute", run))
