"""substitute: make or choose the substitution pool, as far as that needs no student."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

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


def run(session: Session) -> None:
    """Run the method's preparation; save pool, hold-out, teacher's logits and method state."""
    from kdci.training.runtime import derive_seed, generator

    cell = session.node.point
    method, pool_seed = str(cell["method"]), int(cell["pool_seed"])
    teacher_artifact = session.parent("teacher")
    runtime = session.start_runtime()
    teacher = open_teacher(session, teacher_artifact, runtime)
    bank = pool_bank(session, base=None)
    seed = derive_seed(pool_seed, "pool", method)
    skipped: dict[str, int] = {}
    context = source_context(session, teacher_artifact, teacher, bank, seed=seed, skipped=skipped)
    source = build_pool_source(session, context)
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
    facts = {"method": method, "teacher": str(cell["teacher"]), "skipped": skipped}
    write_pool(
        session,
        teacher=teacher,
        images=bank.chunks(kept),
        holdout=bank.chunks(held),
        num_holdout=len(held),
        source=source,
        kept=kept,
        facts=facts,
    )


def _split(size: int, share: float, random: Any) -> tuple[Tensor, Tensor]:
    """Return the rows that the student may see, in order, and those that are held out."""
    import torch

    num_holdout = max(1, round(share * size))
    held = torch.randperm(size, generator=random)[:num_holdout].sort().values
    kept = torch.ones(size, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().flatten(), held


if __name__ == "__main__":
    sys.exit(main("substitute", run))
