"""teacher: train the teacher on original data and score it on the test split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages._main import Stage, main
from stages._session import Session

if TYPE_CHECKING:
    from kdci.models import PixelModel


def train_teacher(session: Session) -> None:
    """Train with the recipe of the `teacher` block; the last epoch is the teacher."""
    from kdci.data.datasets import load_split
    from kdci.metrics import read_metrics
    from kdci.pretrained import MODEL_FILE, build_network
    from kdci.runtime import derive_seed, require_finite
    from kdci.training import SupervisedTrainer

    params, recipe, spec = session.params, session.params.teacher, session.params.data.spec
    backbone = str(session.identity.cell["teacher"])
    runtime = session.start_runtime()
    path = Path(params.data.path) if params.data.path else None
    train = load_split(spec.name, path=path, split="train")
    model = build_network(
        backbone,
        spec,
        seed=derive_seed(recipe.seed, "teacher", backbone),
        device=runtime.device,
        autocast_dtype=runtime.autocast_dtype,
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
    require_finite(model, session.identity.name)
    facts = {
        "backbone": backbone,
        "dataset": spec.name,
        "num_classes": spec.num_classes,
        "channels": spec.channels,
        "image_size": spec.image_size,
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


def _test_accuracy(session: Session, model: PixelModel, path: Path | None) -> float:
    from kdci.data.datasets import load_split
    from kdci.evaluation import PREDICTION_BATCH, match_percentage, predict_classes

    data = load_split(session.params.data.name, path=path, split="test")
    predicted = predict_classes(
        lambda images: model(images).logits,
        data.images,
        batch_size=PREDICTION_BATCH,
        device=next(model.parameters()).device,
    )
    return match_percentage(predicted, data.labels)


STAGES = (
    Stage(
        name="teacher",
        axes=("teacher",),
        blocks=("runtime", "data", "teacher"),
        artifact=lambda layout, cell: layout.teacher(str(cell["teacher"])),
        run=train_teacher,
        for_other=True,
    ),
)

if __name__ == "__main__":
    sys.exit(main(STAGES))
