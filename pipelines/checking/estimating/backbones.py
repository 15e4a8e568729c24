"""What a backbone takes: predictions, a step of supervised training, memory, its file."""

from __future__ import annotations

from functools import partial

import torch

from kdci.data.datasets.labelled import LabelledImages
from kdci.training.evaluation import PREDICTION_BATCH, predict_logits
from kdci.training.supervised import SupervisedTrainer
from pipelines.checking.estimating.machine import Machine, Unheard
from pipelines.checking.estimating.timing import usual

Measured = dict[str, float | int | None]
_FEW = 32
_MANY = 10**9
"""More steps than are ever taken."""


def measure_backbone(machine: Machine, backbone: str, *, trained: bool) -> Measured:
    """Time a backbone on noise.

    Args:
        machine: Where.
        backbone: Its name.
        trained: Whether it is a teacher that is to be trained.

    Returns:
        ``predict``, the seconds of an image; ``train``, those of a step at the teacher's batch
        size, or None; ``state``, the bytes of its weights' file; ``peak``, the most memory.
    """
    device = machine.runtime.device
    model = machine.teacher(backbone)
    few, many = machine.noise(_FEW), machine.noise(PREDICTION_BATCH)
    predict = partial(predict_logits, lambda x: model(x).logits, device=device)
    first = usual(lambda: predict(few, batch_size=_FEW), device)
    seconds = first / _FEW
    if first < 1.0:  # else a large network, to which the size of a batch is all the same
        whole = usual(lambda: predict(many, batch_size=len(many)), device)
        seconds = whole / len(many)
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    train = _training(machine, backbone) if trained else None
    return {"predict": seconds, "train": train, "state": state, "peak": machine.peak_bytes()}


def _training(machine: Machine, backbone: str) -> float:
    recipe, spec = machine.params.teacher, machine.spec
    labels = torch.arange(recipe.batch_size) % spec.num_classes
    trainer = SupervisedTrainer(
        model=machine.student(backbone),
        data=LabelledImages(machine.noise(recipe.batch_size), labels),
        spec=spec,
        sink=Unheard(),
        num_epochs=_MANY,
        batch_size=recipe.batch_size,
        learning_rate=1e-6,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        seed=0,
    )
    steps = trainer.run()
    return usual(lambda: next(steps), machine.runtime.device)
