"""distill_vanilla, distill_kdci: distil one student, without and with a dictionary."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages._main import Cell, Stage, main
from stages._pool import open_teacher, pool_bank, source_context
from stages._session import Session

if TYPE_CHECKING:
    from kdci.compensation import Compensation
    from kdci.distillation import Distiller
    from kdci.layout import Layout
    from kdci.models import PixelModel
    from kdci.substitution.base import SubstitutionSource


def distill_vanilla(session: Session) -> None:
    """Distil the plain method's student."""
    _distill(session, with_dictionary=False)


def distill_kdci(session: Session) -> None:
    """Distil the same student with bias compensation."""
    _distill(session, with_dictionary=True)


def _distill(session: Session, *, with_dictionary: bool) -> None:
    from kdci.artifacts import save_tensors
    from kdci.distillation import Distiller
    from kdci.pretrained import build_network
    from kdci.runtime import derive_seed, require_finite

    cell, params = session.identity.cell, session.params
    method = str(cell["method"])
    _open_parents(session, with_dictionary=with_dictionary)
    runtime = session.start_runtime(Path(__file__))
    # One seed for both arms; the pool's seed is in it, so that replicates are independent.
    seed = derive_seed(int(cell["seed"]), int(cell["pool_seed"]), "distill")
    teacher = open_teacher(session, session.artifact("teacher"), runtime)
    state = session.resume()
    source = _source(session, teacher, seed, resumed=state is not None)
    student = build_network(
        str(cell["student"]),
        params.data.spec,
        seed=derive_seed(seed, "student"),
        device=runtime.device,
        autocast_dtype=runtime.autocast_dtype,
    )
    compensation = _compensation(session, seed) if with_dictionary else None
    recipe = params.recipe(method)
    distiller = Distiller(
        teacher=teacher,
        student=student,
        source=source,
        compensation=compensation.to(runtime.device) if compensation is not None else None,
        sink=session.metrics,
        num_epochs=recipe.num_epochs,
        steps_per_epoch=recipe.steps_per_epoch,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        final_learning_rate=recipe.final_learning_rate,
        compensation_learning_rate=params.compensation.learning_rate,
    )
    if state is not None:
        distiller.load_state_dict(state)
    marks = snapshot_steps(recipe.num_epochs, recipe.steps_per_epoch, params.distill.num_snapshots)

    def steps() -> Any:
        for step in distiller.run():
            if step in marks:
                # A checkpoint taken later implies the snapshot: both are on disk in order.
                save_tensors(session.folder / _snapshot_name(step), _weights(distiller))
            yield step

    session.run_loop(
        steps(), total=distiller.num_steps, state=distiller.state_dict, label="distilling"
    )
    require_finite(student, session.identity.name)
    if compensation is not None:
        require_finite(compensation, session.identity.name)
    _write(session, distiller, marks)


def snapshot_steps(num_epochs: int, steps_per_epoch: int, num_snapshots: int) -> list[int]:
    """Return the steps after which a snapshot is taken, evenly spread, the last one in.

    Ends of epochs where there are enough of them; a recipe of a few long epochs has snapshots
    within them.
    """
    unit, num_units = steps_per_epoch, num_epochs
    if num_units < num_snapshots:
        unit, num_units = 1, num_epochs * steps_per_epoch
    count = min(num_snapshots, num_units)
    marks = sorted({round(num_units * (i + 1) / count) for i in range(count)})
    return [unit * mark for mark in marks]


def _snapshot_name(step: int) -> str:
    return f"snapshot-{step:09d}.safetensors"


def _weights(distiller: Distiller) -> dict[str, Any]:
    weights = {f"student/{k}": v for k, v in distiller.student.state_dict().items()}
    if distiller.compensation is not None:
        state = distiller.compensation.state_dict()
        weights.update({f"compensation/{k}": v for k, v in state.items()})
    return weights


def _open_parents(session: Session, *, with_dictionary: bool) -> None:
    cell, layout = session.identity.cell, session.layout
    teacher, method, pool_seed = str(cell["teacher"]), str(cell["method"]), int(cell["pool_seed"])
    session.parent("teacher", layout.teacher(teacher))
    session.parent("pool", layout.pool(teacher, method, pool_seed))
    if with_dictionary:
        session.parent("dictionary", layout.dictionary(teacher, method, pool_seed))


def _source(
    session: Session, teacher: PixelModel, seed: int, *, resumed: bool
) -> SubstitutionSource:
    """Go on from the pool's method state, with the student seed's own random streams.

    A checkpoint holds a later state, and images that the pool's state would cut off the bank.
    """
    from kdci.checkpoints import load_state
    from kdci.runtime import derive_seed
    from kdci.substitution.registry import build_source

    method = str(session.identity.cell["method"])
    pool, artifact = session.artifact("pool"), session.artifact("teacher")
    bank = pool_bank(session, base=pool.file("images.npy"))
    context = source_context(session, artifact, teacher, bank, seed=derive_seed(seed, "source"))
    source = build_source(method, session.params.method(method), context)
    if not resumed:
        source.load_state_dict(load_state(pool.path / "source"))
        source.reseed(derive_seed(seed, "source"))
    return source


def _compensation(session: Session, seed: int) -> Compensation:
    from kdci.compensation import Compensation
    from kdci.runtime import derive_seed

    block = session.params.compensation
    tensors = session.artifact("dictionary").tensors("dictionary.safetensors")
    return Compensation(
        tensors["prototypes"],
        tensors["proportions"],
        num_classes=session.params.data.spec.num_classes,
        fusion=block.fusion,
        scale=block.scale,
        hidden_dim=block.hidden_dim,
        weights=block.lambda_,
        prototypes=block.prototypes,
        proportions=block.proportions,
        seed=derive_seed(seed, "compensation"),
    )


def _write(session: Session, distiller: Distiller, marks: list[int]) -> None:
    from kdci.pretrained import MODEL_FILE

    cell, spec = session.identity.cell, session.params.data.spec
    compensation = distiller.compensation
    facts: dict[str, Any] = {
        **cell,
        "variant": "vanilla" if compensation is None else "kdci",
        "dataset": spec.name,
        "num_classes": spec.num_classes,
        "channels": spec.channels,
        "image_size": spec.image_size,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "num_steps": distiller.num_steps,
        "batch_size": distiller.batch_size,
        "num_images": len(distiller.source.bank),
        "snapshots": [[step, _snapshot_name(step)] for step in marks],
        "compensation": compensation.shape() if compensation is not None else None,
    }
    seeds = {"seed": int(cell["seed"]), "pool_seed": int(cell["pool_seed"])}
    with session.new_artifact("student", seeds=seeds) as draft:
        draft.save_tensors(MODEL_FILE, distiller.student.state_dict())
        if compensation is not None:
            draft.save_tensors("compensation.safetensors", compensation.state_dict())
        for step in marks:
            name = _snapshot_name(step)
            (draft.folder / name).write_bytes((session.folder / name).read_bytes())
        draft.card["facts"] = facts


def _artifact(variant: str) -> Any:
    def place(layout: Layout, cell: Cell) -> Path:
        from kdci.layout import Cell as LayoutCell

        return layout.student(LayoutCell(variant=variant, **cell))  # type: ignore[arg-type]

    return place


_AXES = ("teacher", "student", "method", "pool_seed", "seed")
_BLOCKS = ("runtime", "data.name", "methods.{method}", "recipes.{method}", "distill")

STAGES = (
    Stage("distill_vanilla", _AXES, _BLOCKS, _artifact("vanilla"), distill_vanilla),
    Stage("distill_kdci", _AXES, (*_BLOCKS, "compensation"), _artifact("kdci"), distill_kdci),
)

if __name__ == "__main__":
    sys.exit(main(STAGES))
