"""teacher: train the teacher on original data, or adopt a finished one, and score it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.config.catalog import facts_of_spec, stem_for
from kdci.config.data import Data
from stages.main import main
from stages.session import Session

if TYPE_CHECKING:
    from kdci.data.datasets.labelled import LabelledImages, Split
    from kdci.models import PixelModel


def run(session: Session) -> None:
    """Train a teacher, or adopt the finished one that `teacher.artifact` names."""
    params, backbone = session.params, str(session.node.point["teacher"])
    place = params.teacher.artifact_of(backbone, params.data.name)
    if place is None:
        _train(session, backbone)
    else:
        _adopt(session, backbone, place)


def _train(session: Session, backbone: str) -> None:
    """Train with the recipe of the `teacher` block; the last epoch is the teacher."""
    from kdci.models.networks import Networks
    from kdci.models.pretrained import MODEL_FILE
    from kdci.store.metrics import read_metrics
    from kdci.training.runtime import derive_seed, require_finite
    from kdci.training.supervised import SupervisedTrainer

    params, data, recipe = session.params, session.params.data, session.params.teacher
    stem = stem_for(params.backbone.stem, data.spec.image_size)
    networks = Networks(session.start_runtime(), session.layout.formats, session.note_format)
    train = _split(data, "train")
    model = networks.untrained(
        backbone, data.spec, stem=stem, seed=derive_seed(recipe.seed, "teacher", backbone)
    )
    trainer = SupervisedTrainer(
        model=model,
        data=train,
        spec=data.spec,
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
        **facts_of_spec(data.spec),
        "num_steps": trainer.num_steps,
        # Of the last epoch while it trained, on augmented images: another pass over the
        # training data would cost as much as a good part of an epoch.
        "train_accuracy": read_metrics(session.metrics.path)[-1]["train_accuracy"],
        "accuracy": _accuracy(model, _split(data, "test")) if data.test else None,
    }
    with session.new_artifact("teacher", seeds={"seed": recipe.seed}) as draft:
        draft.save_tensors(MODEL_FILE, model.state_dict())
        draft.card["facts"] = facts


def _adopt(session: Session, backbone: str, place: str) -> None:
    """Verify a finished teacher and make its tensors, bit for bit, those of this experiment.

    Raises:
        UserError: It is not there, or not the teacher that the params ask for.
        IntegrityError: It is damaged.
        NumericError: A weight is not finite.
    """
    from kdci.intake.adoption import adopting, require_adoptable, require_content
    from kdci.models.networks import Networks
    from kdci.models.pretrained import MODEL_FILE

    data, wanted = session.params.data, session.params.teacher.content
    with adopting(place):
        finished = session.parent("adopted")
    require_content(finished.content, place, wanted=wanted)
    require_adoptable(finished.facts, place, backbone=backbone, spec=data.spec)
    networks = Networks(session.start_runtime(), session.layout.formats, session.note_format)
    model = networks.teacher(finished, data.spec)
    facts: dict[str, Any] = {
        **finished.facts,
        "adopted": {"content": finished.content, "path": place},
    }
    if data.test:
        facts["accuracy"] = _accuracy(model, _split(data, "test"))
    with session.new_artifact("teacher", seeds={}) as draft:
        draft.save_tensors(MODEL_FILE, finished.tensors(MODEL_FILE))
        draft.card["facts"] = facts


def _split(data: Data, split: Split) -> LabelledImages:
    from kdci.data.datasets.loading import load_split

    return load_split(data.spec, path=Path(data.path) if data.path else None, split=split)


def _accuracy(model: PixelModel, test: LabelledImages) -> float:
    from kdci.training.evaluation import PREDICTION_BATCH, match_percentage, predict_classes

    predicted = predict_classes(
        lambda images: model(images).logits,
        test.images,
        batch_size=PREDICTION_BATCH,
        device=next(model.parameters()).device,
    )
    return match_percentage(predicted, test.labels)


if __name__ == "__main__":
    sys.exit(main("teacher", run))
