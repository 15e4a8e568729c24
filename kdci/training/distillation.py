"""The one distillation loop that all methods share, with KDCI or without.

"KDCI on" means that a ``Compensation`` was passed. Vanilla and KDCI run the same loop, from the
same initial student, on the same pool, and differ in that one argument. This is the only
module that sees both a substitution source and a compensation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kdci.errors import NumericError
from kdci.models import PixelModel
from kdci.models.states import Stateful
from kdci.store.metrics import MetricSink, RunningMeans
from kdci.training.optimizers import SGD, Adam
from kdci.training.schedules import Schedule, learning_rate_factor, scale_learning_rates

if TYPE_CHECKING:
    from kdci.deconfounding.compensation import Compensation
    from kdci.deconfounding.logit_adjustment import LogitAdjustment
    from kdci.deconfounding.rebuilding import DictionaryRebuilder
    from kdci.substitution.bank_source import BankSource


class Distiller(Stateful):
    """Distils a teacher into a student on a source's substitution images.

    Args:
        teacher: Frozen, in eval mode.
        student: Trained in place; raw logits f_S.
        source: The method's images and student loss.
        compensation: phi, applied to the student's logits in every term of the loss, or a
            logit adjustment in its place; None is the plain method.
        sink: Receives the means of each epoch, at the step it ended.
        num_epochs: Epochs; ``source.refresh`` is called at the start of each, or as often as
            ``source.refresh_period`` says.
        steps_per_epoch: Steps an epoch.
        batch_size: Images a step.
        learning_rate: SGD's initial rate for the student.
        momentum: SGD's momentum.
        weight_decay: SGD's weight decay.
        schedule: See ``kdci.training.schedules``.
        final_learning_rate: End of the cosine schedule.
        compensation_learning_rate: Initial rate of the compensation's own parameter group;
            None: the student's.
        rebuilder: Builds the compensation's dictionary anew as the source's bank grows; None: it
            stays.
    """

    kept = (
        "step",
        "student",
        "compensation",
        "criterion",
        "optimizer",
        "criterion_optimizer",
        "source",
        "rebuilder",
        "means",
        "refreshed",
    )

    def __init__(
        self,
        *,
        teacher: PixelModel,
        student: PixelModel,
        source: BankSource,
        compensation: Compensation | LogitAdjustment | None,
        sink: MetricSink,
        num_epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        learning_rate: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        final_learning_rate: float = 0.0,
        compensation_learning_rate: float | None = None,
        rebuilder: DictionaryRebuilder | None = None,
    ) -> None:
        self.teacher = teacher
        self.student = student
        self.source = source
        self.compensation = compensation
        self.rebuilder = rebuilder
        self.sink = sink
        self.steps_per_epoch = steps_per_epoch
        self.num_steps = num_epochs * steps_per_epoch
        self.batch_size = batch_size
        self.schedule = schedule
        self.final_factor = final_learning_rate / learning_rate
        self.step = 0
        self.means = RunningMeans()
        self.refreshed = RunningMeans()
        self.refresh_period = source.refresh_period or steps_per_epoch
        self.criterion = source.criterion().to(next(student.parameters()).device)
        groups: list[dict[str, Any]] = [{"params": list(student.parameters())}]
        if compensation is not None and list(compensation.parameters()):
            rate = (
                learning_rate if compensation_learning_rate is None else compensation_learning_rate
            )
            groups.append({"params": list(compensation.parameters()), "lr": rate})
        self.optimizer = SGD(groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
        own = list(self.criterion.parameters())
        self.criterion_optimizer = Adam(own, lr=self.criterion.learning_rate) if own else None

    def run(self) -> Iterator[int]:
        """Train to the end, yielding the number of steps taken after each one.

        Goes on from a loaded state. The caller may stop between two steps and save the state.

        Raises:
            NumericError: A term of the loss is not finite; names step and term.
        """
        self._train_mode()
        while self.step < self.num_steps:
            if self.step % self.refresh_period == 0:
                self.refreshed.add(self.source.refresh(self.student))
                self._rebuild_dictionary()
            student_logits = self._train_step()
            self.step += 1
            if self.step % self.steps_per_epoch == 0:
                self._log_epoch(student_logits)
            yield self.step

    def _rebuild_dictionary(self) -> None:
        dictionary = None if self.rebuilder is None else self.rebuilder.offer(self.step)
        if dictionary is not None:
            compensation = cast("Compensation", self.compensation)
            compensation.set_dictionary(dictionary.prototypes_ND, dictionary.proportions_N)

    def _train_mode(self) -> None:
        self.teacher.eval()
        self.student.train()
        self.criterion.train()
        if self.compensation is not None:
            self.compensation.train()

    def _train_step(self) -> Tensor:
        factor = learning_rate_factor(
            self.schedule, step=self.step, num_steps=self.num_steps, final_factor=self.final_factor
        )
        scale_learning_rates(self.optimizer, factor)
        images = self.source.batch(self.batch_size)
        with torch.no_grad():
            teacher_logits = self.teacher(images).logits
        student_logits: Tensor = self.student(images).logits
        compensated = student_logits
        if self.compensation is not None:
            compensated = self.compensation(student_logits)
        terms = self.criterion(compensated, teacher_logits)
        loss = torch.stack(list(terms.values())).sum()
        values = {name: float(term.detach()) for name, term in terms.items()}
        values["loss"] = float(loss.detach())
        self._require_finite(values)
        self.optimizer.zero_grad(set_to_none=True)
        if self.criterion_optimizer is not None:
            self.criterion_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        self.optimizer.step()
        if self.criterion_optimizer is not None:
            self.criterion_optimizer.step()
        agreement = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean()
        self.means.add({**values, "agreement": 100 * float(agreement)})
        return student_logits.detach()

    def _require_finite(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NumericError(
                    f"distill step {self.step + 1}",
                    f"the loss term '{name}' is {value}",
                    "lower the student's learning_rate",
                )

    def _log_epoch(self, student_logits: Tensor) -> None:
        values = {**self.means.take(), **self.refreshed.take()}
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        values["bank"] = len(self.source.bank)
        if self.compensation is not None:
            values.update(self.compensation.describe(student_logits))
        self.sink.log(self.step, epoch=self.step // self.steps_per_epoch, **values)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of student and compensation, as a snapshot holds them."""
        modules = {"student": self.student, "compensation": self.compensation}
        return {
            f"{name}/{key}": value
            for name, module in modules.items()
            if module is not None
            for key, value in module.state_dict().items()
        }
