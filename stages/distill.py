"""distill: one student of one arm, the plain method's or a de-confounded one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from kdci.config.catalog import stem_for
from kdci.deconfounding.arms import Arm
from stages._arms import correction, rebuilder_of, stratify
from stages._formats import format_of
from stages._main import main
from stages._pool import build_pool_source, open_teacher, pool_bank, source_context
from stages._session import Session
from stages._step_networks import predicting, trained

if TYPE_CHECKING:
    from kdci.deconfounding.compensation import Compensation
    from kdci.deconfounding.confounder import ConfounderDictionary
    from kdci.models import PixelModel
    from kdci.substitution.base import SubstitutionSource
    from kdci.training.distillation import Distiller


def run(session: Session) -> None:
    """Distil the student of one arm: the plain method's, or one that is de-confounded."""
    from kdci.models.pretrained import build_network
    from kdci.store.artifacts import save_tensors
    from kdci.training.distillation import Distiller
    from kdci.training.runtime import derive_seed, require_finite

    cell, params, arm = session.node.point, session.params, session.node.arm
    method = str(cell["method"])
    for role in session.node.parents:
        session.parent(role)
    runtime = session.start_runtime()
    # One seed for all arms; the pool's seed is in it, so that replicates are independent.
    seed = derive_seed(int(cell["seed"]), int(cell["pool_seed"]), "distill")
    teacher = open_teacher(session, session.artifact("teacher"), runtime)
    format_of_student = format_of(session, str(cell["student"]), training=True)
    state = session.resume()
    source = _source(session, teacher, seed, resumed=state is not None)
    student = build_network(
        str(cell["student"]),
        params.data.spec,
        stem=stem_for(params.backbone.stem, params.data.spec.image_size),
        seed=derive_seed(seed, "student"),
        device=runtime.device,
        autocast_dtype=format_of_student.autocast_dtype,
        channels_last=format_of_student.channels_last,
    )
    trained(session, student)
    compensation = correction(session, arm, seed)
    rebuilder = rebuilder_of(session, arm, teacher, source)
    stratify(session, arm, teacher, source)
    recipe = params.recipe(method)
    distiller = Distiller(
        teacher=predicting(session, teacher),
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
        rebuilder=rebuilder,
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
    require_finite(student, session.node.name)
    if compensation is not None:
        require_finite(compensation, session.node.name)
    _write(session, arm, distiller, marks)


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


def _source(
    session: Session, teacher: PixelModel, seed: int, *, resumed: bool
) -> SubstitutionSource:
    """Go on from the pool's method state, with the student seed's own random streams.

    A checkpoint holds a later state, and images that the pool's state would cut off the bank.
    """
    from kdci.store.checkpoints import load_state
    from kdci.training.runtime import derive_seed

    pool, artifact = session.artifact("pool"), session.artifact("teacher")
    bank = pool_bank(session, base=pool.file("images.npy"))
    context = source_context(session, artifact, teacher, bank, seed=derive_seed(seed, "source"))
    source = build_pool_source(session, context)
    if not resumed:
        source.load_state_dict(load_state(pool.path / "source"))
        source.reseed(derive_seed(seed, "source"))
    return source


def _write(session: Session, arm: Arm, distiller: Distiller, marks: list[int]) -> None:
    from kdci.models.pretrained import MODEL_FILE

    cell, spec = session.node.point, session.params.data.spec
    # Logits are adjusted while training alone: nothing of it is deployed.
    compensation = cast("Compensation", distiller.compensation) if arm.compensated else None
    facts: dict[str, Any] = {
        **cell,
        "dataset": spec.name,
        "num_classes": spec.num_classes,
        "channels": spec.channels,
        "image_size": spec.image_size,
        # Of a custom dataset nothing else tells who gets a student what its answers mean.
        **({"class_names": list(spec.class_names)} if spec.named else {}),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "stem": stem_for(session.params.backbone.stem, spec.image_size),
        "num_steps": distiller.num_steps,
        "batch_size": distiller.batch_size,
        "num_images": len(distiller.source.bank),
        "snapshots": [[step, _snapshot_name(step)] for step in marks],
        "compensation": compensation.shape() if compensation is not None else None,
        "rebuilt": [step for step, _ in _rebuilt(distiller)],
    }
    seeds = {"seed": int(cell["seed"]), "pool_seed": int(cell["pool_seed"])}
    with session.new_artifact("student", seeds=seeds) as draft:
        draft.save_tensors(MODEL_FILE, distiller.student.state_dict())
        if compensation is not None:
            draft.save_tensors("compensation.safetensors", compensation.state_dict())
        for step, dictionary in _rebuilt(distiller):
            tensors = {
                "prototypes": dictionary.prototypes_ND,
                "proportions": dictionary.proportions_N,
            }
            draft.save_tensors(f"dictionary-{step:09d}.safetensors", tensors)
        for step in marks:
            name = _snapshot_name(step)
            (draft.folder / name).write_bytes((session.folder / name).read_bytes())
        draft.card["facts"] = facts


def _rebuilt(distiller: Distiller) -> list[tuple[int, ConfounderDictionary]]:
    return distiller.rebuilder.built if distiller.rebuilder is not None else []


if __name__ == "__main__":
    sys.exit(main("distill", run))
