"""Supervised training of the teacher: the only training that sees original data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.augmentation import augment
from kdci.data.bank.shuffled_rows import ShuffledRows
from kdci.data.datasets.labelled import LabelledImages
from kdci.errors import NumericError
from kdci.models import PixelModel
from kdci.models.states import Stateful
from kdci.store.metrics import MetricSink, RunningMeans
from kdci.training.optimizers import SGD
from kdci.training.runtime import derive_seed, generator
from kdci.training.schedules import learning_rate_factor, scale_learning_rates


class SupervisedTrainer(Stateful):
    """Cross-entropy training with SGD, Nesterov momentum and a cosine schedule.

    Args:
        model: Trained in place.
        data: Labelled images.
        spec: Says which crops and flips keep labels true.
        sink: Receives the means of each epoch, at the epoch's number.
        num_epochs: Passes over the data; each is rounded up to whole batches.
        batch_size: Images a step.
        learning_rate: Initial rate.
        momentum: Momentum.
        weight_decay: Weight decay.
        seed: Seed of batch order and augmentation.
    """

    kept = ("step", "model", "optimizer", "rows", "augmentation", "means")

    def __init__(
        self,
        *,
        model: PixelModel,
        data: LabelledImages,
        spec: DatasetSpec,
        sink: MetricSink,
        num_epochs: int,
        batch_size: int,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        self.model = model
        self.data = data
        self.spec = spec
        self.sink = sink
        self.batch_size = min(batch_size, len(data.images))
        self.steps_per_epoch = -(-len(data.images) // self.batch_size)
        self.num_steps = num_epochs * self.steps_per_epoch
        self.step = 0
        self.means = RunningMeans()
        self.rows = ShuffledRows(derive_seed(seed, "teacher", "rows"))
        self.augmentation = generator(seed, "teacher", "augmentation")
        self.optimizer = SGD(
            model.parameters(),
            lr=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=momentum > 0,
        )

    def run(self) -> Iterator[int]:
        """Train to the end, yielding the number of steps taken after each one.

        Raises:
            NumericError: The loss is not finite.
        """
        self.model.train()
        while self.step < self.num_steps:
            self._train_step()
            self.step += 1
            if self.step % self.steps_per_epoch == 0:
                rate = self.optimizer.param_groups[0]["lr"]
                epoch = self.step // self.steps_per_epoch
                self.sink.log(epoch, **self.means.take(), learning_rate=rate)
            yield self.step

    def _train_step(self) -> None:
        factor = learning_rate_factor("cosine", step=self.step, num_steps=self.num_steps)
        scale_learning_rates(self.optimizer, factor)
        images, labels = self._batch()
        logits = self.model(images).logits
        loss = F.cross_entropy(logits, labels)
        if not bool(torch.isfinite(loss)):
            raise NumericError(
                f"teacher step {self.step + 1}",
                f"the loss is {float(loss.detach())}",
                "lower teacher.learning_rate",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        self.optimizer.step()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.means.add({"loss": float(loss.detach()), "train_accuracy": 100 * float(accuracy)})

    def _batch(self) -> tuple[Tensor, Tensor]:
        rows = self.rows.next(self.batch_size, len(self.data.images))
        device = next(self.model.parameters()).device
        images = self.data.images[rows].to(device).float() / 255
        images = augment(images, self.spec, self.augmentation)
        return images, self.data.labels[rows].to(device)
