"""distill: one student of one arm, the plain method's or a de-confounded one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kdci.config.catalog import facts_of_spec, stem_for
from kdci.config.params import Params
from kdci.deconfounding.arms import Arm
from kdci.store.layout import Cell
from kdci.training.schedules import snapshot_name, snapshot_steps
from stages.main import main
from stages.session import Session

if TYPE_CHECKING:
    from kdci.deconfounding.compensation import Compensation
    from kdci.deconfounding.intervention import Intervention
    from kdci.store.artifacts import Artifact
    from kdci.substitution.bank_source import BankSource
    from kdci.substitution.base import SourceContext
    from kdci.training.distillation import Distiller


def run(session: Session) -> None:
    """Distil the student of one arm: the plain method's, or one that is de-confounded."""
    from kdci.data.bank.image_bank import ImageBank
    from kdci.models.compiling import compile_trained, for_predictions
    from kdci.models.networks import Networks
    from kdci.models.pretrained import stated_accuracy
    from kdci.substitution.base import SourceContext
    from kdci.substitution.pool_files import continue_source
    from kdci.training.distillation import Distiller
    from kdci.training.runtime import derive_seed, require_finite

    params, arm, cell = session.params, session.node.arm, session.node.student
    assert cell is not None
    spec, recipe = params.data.spec, params.recipe(cell.method)
    stem = stem_for(params.backbone.stem, spec.image_size)
    teacher_artifact, pool = session.parent("teacher"), session.parent("pool")
    dictionary = session.parent("dictionary") if arm.dictionary is not None else None
    networks = Networks(session.start_runtime(), session.layout.formats, session.note_format)
    # One seed for all arms; the pool's seed is in it, so that replicates are independent.
    seed = derive_seed(cell.seed, cell.pool_seed, "distill")
    teacher = networks.teacher(teacher_artifact, spec)
    student = networks.untrained(cell.student, spec, stem=stem, seed=derive_seed(seed, "student"))
    if params.runtime.compile == "both":
        compile_trained(student)
    context = SourceContext(
        teacher=teacher,
        spec=spec,
        bank=ImageBank(
            session.folder / "bank.bin", shape=spec.image_shape, base=pool.file("images.npy")
        ),
        seed=derive_seed(seed, "source"),
        teacher_accuracy=stated_accuracy(teacher_artifact),
    )
    source = _source(params, cell, context)
    state = session.resume()
    if state is None:  # a checkpoint holds a later state, whose images the pool's would cut off
        continue_source(source, pool, seed=context.seed)
    intervention = _intervention(params, arm, pool, dictionary)
    compensation = intervention.correction(
        compensation_settings(params, arm), seed=derive_seed(seed, "compensation")
    )
    rebuilder = intervention.rebuilder(
        source,
        teacher,
        growth=params.compensation.rebuild,
        seed=derive_seed(cell.pool_seed, "dictionary"),
    )
    intervention.stratify(source, teacher)
    distiller = Distiller(
        teacher=for_predictions(
            teacher,
            spec.image_size,
            folded=params.runtime.fold_teacher,
            compiled=params.runtime.compile != "none",
        ),
        student=student,
        source=source,
        compensation=compensation.to(context.device) if compensation is not None else None,
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

    steps = _with_snapshots(distiller, marks, session.folder)
    session.run_loop(
        steps, total=distiller.num_steps, state=distiller.state_dict, label="distilling"
    )
    require_finite(student, session.node.name)
    if compensation is not None:
        require_finite(compensation, session.node.name)
    _write(
        session,
        distiller,
        marks,
        {**cell.asdict(), **facts_of_spec(spec), "stem": stem},
        deployed=arm.compensated,
    )


def _source(params: Params, cell: Cell, context: SourceContext) -> BankSource:
    """Build what makes the images: the method's source, or that of a known shift, which stays."""
    if cell.method in params.grid.shifts:
        from kdci.substitution.bank_source import BankSource

        return BankSource(context, params.shift)

    block = params.method(cell.method, teacher=cell.teacher, student=cell.student)
    return block.source(context)


def _intervention(
    params: Params, arm: Arm, pool: Artifact, dictionary: Artifact | None
) -> Intervention:
    """Read what the arm works on."""
    from kdci.deconfounding.intervention import Intervention, StoredDictionary
    from kdci.substitution.pool_files import pool_logits

    block = params.intervention
    return Intervention(
        arm,
        num_classes=params.data.spec.num_classes,
        logits_MK=pool_logits(pool) if arm.adjusted or arm.strata else None,
        dictionary=None if dictionary is None else StoredDictionary.of(dictionary),
        strata=block.strata,
        max_repeats=block.max_repeats,
        tau=block.tau,
    )


def compensation_settings(params: Params, arm: Arm) -> dict[str, Any]:
    """Return what ``Compensation`` is built with: its block, and what the arm changes of it."""
    block = params.compensation.model_copy(update=dict(arm.changes))
    return {
        "fusion": block.fusion,
        "scale": block.scale,
        "hidden_dim": block.hidden_dim,
        "weights": block.lambda_,
        "prototypes": block.prototypes,
        "proportions": block.proportions,
        "initialisation": block.initialisation,
    }


def _with_snapshots(distiller: Distiller, marks: list[int], folder: Path) -> Iterator[int]:
    """Distil, yielding the steps that are done; leave a snapshot in the folder after some."""
    from kdci.store.artifacts import save_tensors

    for step in distiller.run():
        if step in marks:
            # A checkpoint taken later implies the snapshot: both are on disk in order.
            save_tensors(folder / snapshot_name(step), distiller.weights())
        yield step


def _write(
    session: Session,
    distiller: Distiller,
    marks: list[int],
    facts: dict[str, Any],
    *,
    deployed: bool,
) -> None:
    from kdci.models.pretrained import MODEL_FILE

    # Logits are adjusted while training alone: nothing of it is deployed.
    compensation = cast("Compensation", distiller.compensation) if deployed else None
    rebuilt = distiller.rebuilder.built if distiller.rebuilder is not None else []
    seeds = {"seed": int(facts["seed"]), "pool_seed": int(facts["pool_seed"])}
    with session.new_artifact("student", seeds=seeds) as draft:
        draft.save_tensors(MODEL_FILE, distiller.student.state_dict())
        if compensation is not None:
            draft.save_tensors("compensation.safetensors", compensation.state_dict())
        for step, dictionary in rebuilt:
            tensors = {
                "prototypes": dictionary.prototypes_ND,
                "proportions": dictionary.proportions_N,
            }
            draft.save_tensors(f"dictionary-{step:09d}.safetensors", tensors)
        for step in marks:
            name = snapshot_name(step)
            (draft.folder / name).write_bytes((session.folder / name).read_bytes())
        draft.card["facts"] = {
            **facts,
            "num_steps": distiller.num_steps,
            "batch_size": distiller.batch_size,
            "num_images": len(distiller.source.bank),
            "snapshots": [[step, snapshot_name(step)] for step in marks],
            "compensation": compensation.shape() if compensation is not None else None,
            "rebuilt": [step for step, _ in rebuilt],
        }


if __name__ == "__main__":
    sys.exit(main("distill", run))
