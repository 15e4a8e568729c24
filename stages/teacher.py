"""teacher: train the teacher on original data, or adopt a finished one, and score it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.config.catalog import stem_for
from stages._formats import format_of
from stages._main import main
from stages._session import Session

if TYPE_CHECKING:
    from kdci.models import PixelModel


def run(session: Session) -> None:
    """Train a teacher, or adopt the finished one that `teacher.artifact` names."""
    params, backbone = session.params, str(session.node.point["teacher"])
    place = params.teacher.artifact_of(backbone, params.data.name)
    if place is None:
        train_teacher(session)
    else:
        adopt_teacher(session, place)


def train_teacher(session: Session) -> None:
    """Train with the recipe of the `teacher` block; the last epoch is the teacher."""
    from kdci.data.datasets.loading import load_split
    from kdci.models.pretrained import MODEL_FILE, build_network
    from kdci.store.metrics import read_metrics
    from kdci.training.runtime import derive_seed, require_finite
    from kdci.training.supervised import SupervisedTrainer

    params, recipe, spec = session.params, session.params.teacher, session.params.data.spec
    backbone = str(session.node.point["teacher"])
    runtime = session.start_runtime()
    stem = stem_for(params.backbone.stem, spec.image_size)
    chosen = format_of(session, backbone, training=True)
    path = _data_path(session)
    train = load_split(spec, path=path, split="train")
    model = build_network(
        backbone,
        spec,
        seed=derive_seed(recipe.seed, "teacher", backbone),
        stem=stem,
        device=runtime.device,
        autocast_dtype=chosen.autocast_dtype,
        channels_last=chosen.channels_last,
    )
    trainer = SupervisedTrainer(
        model=model,
        data=train,
        spec=spec,
        sink=session.metrics,
        num_epochs=recipe.num_epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
    )
    state = session.resume()
    if state is not None:
        trainer.load_state_dict(state)
    session.run_loop(
        trainer.run(), total=trainer.num_steps, state=trainer.state_dict, label="training"
    )
    model.eval()  # else scoring would go on moving the BatchNorm statistics, by test images too
    require_finite(model, session.node.name)
    facts = {
        "backbone": backbone,
        "stem": stem,
        "dataset": spec.name,
        "num_classes": spec.num_classes,
        "channels": spec.channels,
        "image_size": spec.image_size,
        **({"class_names": list(spec.class_names)} if spec.named else {}),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "num_steps": trainer.num_steps,
        # Of the last epoch while it trained, on augmented images: another pass over the
        # training data would cost as much as a good part of an epoch.
        "train_accuracy": read_metrics(session.metrics.path)[-1]["train_accuracy"],
        "accuracy": _test_accuracy(session, model, path) if params.data.test else None,
    }
    with session.new_artifact("teacher", seeds={"seed": recipe.seed}) as draft:
        draft.save_tensors(MODEL_FILE, model.state_dict())
        draft.card["facts"] = facts


def adopt_teacher(session: Session, place: str) -> None:
    """Verify a finished teacher and make its tensors, bit for bit, those of this experiment.

    Args:
        session: The running stage.
        place: Its folder, from the project folder, as the params name it.

    Raises:
        UserError: It is not there, or not the teacher that the params ask for.
        IntegrityError: It is damaged.
        NumericError: A weight is not finite.
    """
    from kdci.intake.adoption import adopting, require_adoptable, require_content
    from kdci.models.pretrained import MODEL_FILE, load_teacher, stem_of

    params, spec = session.params, session.params.data.spec
    backbone = str(session.node.point["teacher"])
    with adopting(place):
        finished = session.parent("adopted")
    require_content(finished.content, place, wanted=params.teacher.content)
    require_adoptable(finished.facts, place, backbone=backbone, spec=spec)
    runtime = session.start_runtime()
    chosen = format_of(session, backbone, training=False, stem=stem_of(finished))
    model = load_teacher(
        finished,
        spec,
        device=runtime.device,
        autocast_dtype=chosen.autocast_dtype,
        channels_last=chosen.channels_last,
    )
    facts: dict[str, Any] = {
        **finished.facts,
        "adopted": {"content": finished.content, "path": place},
    }
    if params.data.test:
        facts["accuracy"] = _test_accuracy(session, model, _data_path(session))
    with session.new_artifact("teacher", seeds={}) as draft:
        draft.save_tensors(MODEL_FILE, finished.tensors(MODEL_FILE))
        draft.card["facts"] = facts


def _data_path(session: Session) -> Path | None:
    path = session.params.data.path
    return Path(path) if path else None


def _test_accuracy(session: Session, model: PixelModel, path: Path | None) -> float:
    from kdci.data.datasets.loading import load_split
    from kdci.training.evaluation import PREDICTION_BATCH, match_percentage, predict_classes

    data = load_split(session.params.data.spec, path=path, split="test")
    predicted = predict_classes(
        lambda images: model(images).logits,
        data.images,
        batch_size=PREDICTION_BATCH,
        device=next(model.parameters()).device,
    )
    return match_percentage(predicted, data.labels)


if __name__ == "__main__":
    sys.exit(main("teacher", run))
