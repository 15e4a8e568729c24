"""The params blocks of how teachers and students are trained, and how a budget scales steps."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from kdci.config.block import Block, Count, Folder, NonNegative, Positive, Seed


def scaled_count(count: int, budget: float) -> int:
    """Scale a number of steps, to the nearest and to at least 1."""
    return max(1, round(count * budget))


def scaled_calls(calls: int, steps: int, budget: float) -> tuple[int, int]:
    """Scale the number of ``calls`` of ``steps`` each.

    What a call does stays as it was published, so the number of calls is rounded. Where one is
    left, the steps in it shrink.

    Args:
        calls: How often.
        steps: Steps of each.
        budget: Positive factor.

    Returns:
        Calls and steps, each at least 1.
    """
    scaled = scaled_count(calls, budget)
    if scaled > 1:
        return scaled, steps
    return 1, min(steps, scaled_count(calls * steps, budget))


def scaled_epochs(epochs: int, steps: int, budget: float) -> tuple[int, int]:
    """Scale ``epochs`` of ``steps`` each: the product scales, whatever the number of epochs.

    The number of epochs is rounded up, and the steps in each make up for it.

    Args:
        epochs: How many.
        steps: Steps of each.
        budget: Positive factor.

    Returns:
        Epochs and steps, each at least 1; no more epochs than steps in all.
    """
    total = scaled_count(epochs * steps, budget)
    scaled = min(total, max(1, ceil(epochs * budget - 1e-9)))
    return scaled, max(1, round(total / scaled))


class TeacherRecipe(Block):
    """Supervised training of the teacher: SGD with momentum, cosine schedule, crop and flip."""

    artifact: Folder | None = None
    """Folder of a finished teacher, as `kdci import-teacher` writes it, to verify and adopt in
    the place of training; `{teacher}` and `{dataset}` in it stand for their names."""
    content: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Content hash that the finished teacher has to have, as `kdci import-teacher` prints it: with
    it, another teacher in the same folder is noticed and never taken for this one."""
    num_epochs: Count = 200
    """Passes over the training images."""
    batch_size: Count = 256
    """Training images of a step."""
    learning_rate: Positive = 0.1
    """SGD's rate before the first step; it falls along a cosine."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty as SGD adds it to the gradient."""
    seed: Seed = 0
    """Of initial weights, order of batches, crops and flips."""

    def artifact_of(self, teacher: str, dataset: str) -> str | None:
        """Return the folder of the teacher to adopt, or None."""
        if self.artifact is None:
            return None
        return self.artifact.replace("{teacher}", teacher).replace("{dataset}", dataset)


class StudentRecipe(Block):
    """The student's share of a method's recipe (SGD); the budget is epochs x steps x batch."""

    num_epochs: Count
    """Epochs; at the start of each, most methods make fresh images."""
    steps_per_epoch: Count
    """Distillation steps of an epoch."""
    batch_size: Annotated[int, Field(ge=2)]
    """Substitution images of a step."""
    learning_rate: Positive = 0.1
    """SGD's rate before the first step; `schedule` says how it falls."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty as SGD adds it to the gradient."""
    schedule: Literal["cosine", "milestones", "constant"] = "cosine"
    """`cosine` falls to final_learning_rate; `milestones` divides by 10 at 40 % and 80 %."""
    final_learning_rate: NonNegative = 0.0
    """End of the cosine."""

    @property
    def num_steps(self) -> int:
        """Number of distillation steps."""
        return self.num_epochs * self.steps_per_epoch

    def scaled(self, budget: float) -> Self:
        """Return the recipe with its steps scaled."""
        epochs, steps = scaled_epochs(self.num_epochs, self.steps_per_epoch, budget)
        return self.model_copy(update={"num_epochs": epochs, "steps_per_epoch": steps})
