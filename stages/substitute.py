"""substitute: make or choose the substitution pool, as far as that needs no student."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages._main import Stage, main
from stages._pool import open_teacher, pool_bank, source_context
from stages._session import Session

if TYPE_CHECKING:
    from torch import Tensor


def substitute(session: Session) -> None:
    """Run the method's preparation; save pool, hold-out, teacher's logits and method state."""
    from kdci.checkpoints import save_state
    from kdci.data.image_bank import save_npy
    from kdci.runtime import derive_seed, generator
    from kdci.substitution.registry import build_source

    cell = session.identity.cell
    method, pool_seed = str(cell["method"]), int(cell["pool_seed"])
    block = session.params.method(method)
    teacher_artifact = session.parent("teacher", session.layout.teacher(str(cell["teacher"])))
    runtime = session.start_runtime(Path(__file__))
    teacher = open_teacher(session, teacher_artifact, runtime)
    bank = pool_bank(session, base=None)
    seed = derive_seed(pool_seed, "pool", method)
    skipped: dict[str, int] = {}
    context = source_context(session, teacher_artifact, teacher, bank, seed=seed, skipped=skipped)
    source = build_source(method, block, context)
    state = session.resume()
    if state is not None:
        source.load_state_dict(state["source"])
    else:
        bank.truncate(0)  # a run killed before its first checkpoint leaves images of its own
    done = 0 if state is None else int(state["done"])

    def logged() -> Any:
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
    kept, held = _split(len(bank), session.params.pool.holdout, generator(seed, "holdout"))
    images = bank.rows(kept)
    logits = _teacher_logits(teacher, images)
    with session.new_artifact("pool", seeds={"pool_seed": pool_seed}) as draft:
        save_npy(images, draft.folder / "images.npy")
        save_npy(bank.rows(held), draft.folder / "holdout.npy")
        draft.save_tensors("predictions.safetensors", {"logits": logits})
        stored = pool_bank(session, base=draft.folder / "images.npy", tail="kept.bin")
        source.adopt(stored, kept)
        save_state(draft.folder / "source", source.state_dict())
        draft.card["facts"] = {
            "method": method,
            "teacher": str(cell["teacher"]),
            "num_images": len(images),
            "num_holdout": len(held),
            "num_open_world": source.num_open_world,
            "skipped": skipped,
            **_facts(logits),
        }


def _split(size: int, share: float, random: Any) -> tuple[Tensor, Tensor]:
    """Return the rows that the student may see, in order, and those that are held out."""
    import torch

    num_holdout = max(1, round(share * size))
    held = torch.randperm(size, generator=random)[:num_holdout].sort().values
    kept = torch.ones(size, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().flatten(), held


def _teacher_logits(teacher: Any, images: Tensor) -> Tensor:
    import torch

    from kdci.evaluation import PREDICTION_BATCH, image_batches

    device = next(teacher.parameters()).device
    with torch.no_grad():
        batches = image_batches(images, batch_size=PREDICTION_BATCH, device=device)
        return torch.cat([teacher(batch).logits.cpu() for batch in batches])


def _facts(logits: Tensor) -> dict[str, Any]:
    """Return how the pool is shifted, as the teacher sees it."""
    from kdci.evaluation import class_proportions

    proportions = class_proportions(logits.argmax(dim=1), logits.shape[1])
    return {
        "proportions": proportions.tolist(),
        "confidence": float(logits.softmax(dim=1).max(dim=1).values.mean()),
        "missing_classes": (proportions == 0).nonzero().flatten().tolist(),
    }


STAGES = (
    Stage(
        name="substitute",
        axes=("teacher", "method", "pool_seed"),
        blocks=("runtime", "data.name", "pool", "methods.{method}"),
        artifact=lambda layout, cell: layout.pool(
            str(cell["teacher"]), str(cell["method"]), int(cell["pool_seed"])
        ),
        run=substitute,
    ),
)

if __name__ == "__main__":
    sys.exit(main(STAGES))
