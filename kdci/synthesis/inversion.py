"""Model inversion in calls: a frozen teacher, its BatchNorm statistics, the best batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdci.errors import NumericError, UserError
from kdci.models import PixelModel
from kdci.models.generators.generating import build_beside
from kdci.models.generators.generator import Generator, LatentGenerator
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.synthesis.batch_statistics import variance_and_mean
from kdci.synthesis.layer_features import LayerInputs


class BatchNormStatistics(LayerInputs[tuple[Tensor, Tensor]]):
    """Reads the batch statistics of every BatchNorm2d input while used as a context.

    Layers that track no running statistics are left out: there is nothing to compare them with.

    Args:
        model: The model to read, usually the teacher in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [
            module
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]
        super().__init__(self._norms, variance_and_mean)

    def __len__(self) -> int:
        return len(self._norms)

    @property
    def compared(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """What ``bn_statistics_loss`` compares, each L tensors of shape (C,), float32.

        Means and biased variances of the last forward pass's batch, then the running ones.
        """
        variances_LC, means_LC = (list(one) for one in zip(*self.readings, strict=True))
        running_means_LC, running_variances_LC = (
            [getattr(norm, name).float() for norm in self._norms]
            for name in ("running_mean", "running_var")
        )
        return means_LC, variances_LC, running_means_LC, running_variances_LC


def require_batch_norm(model: nn.Module, method: str, backbone: str) -> None:
    """Refuse a teacher whose data statistics can not be read.

    Args:
        model: The teacher.
        method: Key of the method that needs the statistics, for the message.
        backbone: Name of the teacher's backbone, for the message.

    Raises:
        UserError: No BatchNorm2d layer tracks running statistics.
    """
    if len(BatchNormStatistics(model)) == 0:
        raise UserError(
            subject=f"methods.{method}",
            what="needs a teacher with BatchNorm layers that track running statistics, "
            f"found none in {backbone}",
            fix="use a teacher with BatchNorm, or a method that samples instead of inverting",
        )


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Hold models in eval mode without gradient to their parameters, then restore both.

    Synthesis differentiates through the nets with respect to images only; eval mode keeps
    the student's running statistics out of reach of images it does not train on.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    flags = [(weight, weight.requires_grad) for model in models for weight in model.parameters()]
    try:
        for model in models:
            model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, requires_grad in flags:
            weight.requires_grad_(requires_grad)


def generator_of(
    source: BankSource, kind: Callable[..., LatentGenerator] = Generator, **options: Any
) -> LatentGenerator:
    """Build a generator of a dataset's images beside a method's teacher.

    Args:
        source: Its block has a ``latent_dim`` and a ``generator_width``; its stream decides the
            weights.
        kind: Class of the generator.
        options: Of that class alone.
    """
    spec, params = source.context.spec, source.params
    build = partial(
        kind,
        latent_dim=params.latent_dim,
        image_size=spec.image_size,
        channels=spec.channels,
        width=params.generator_width,
        **options,
    )
    return build_beside(source.context.teacher, build, source.random)


class BestBatch:
    """The batch with the lowest loss among the K steps of one call, with its readings.

    Args:
        method: Named in the error of a loss that is not finite.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._kept: dict[str, Tensor] = {}
        self._readings: list[dict[str, Tensor]] = []
        self._lowest = torch.tensor(torch.inf)

    def offer(self, readings: Mapping[str, Tensor], **tensors: Tensor) -> None:
        """Keep copies of the tensors if ``inversion_loss`` is the lowest so far.

        Decided on the device: asking the host at each step would stall a GPU.

        Args:
            readings: Terms of the loss and their sum, ``inversion_loss``; scalars.
            tensors: What belongs to this step by name: the images as the loss saw them, and
                whatever the method keeps beside them.
        """
        detached = {name: value.detach() for name, value in readings.items()}
        loss = detached["inversion_loss"]
        if self._readings:
            better = loss < self._lowest
            self._kept = {
                name: torch.where(better, tensor.detach(), self._kept[name])
                for name, tensor in tensors.items()
            }
            self._lowest = torch.where(better, loss, self._lowest)
        else:
            # Clones: an optimiser that works in place may own what was offered.
            self._kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            self._lowest = loss
        self._readings.append(detached)

    def result(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the kept tensors by name, and their readings.

        Raises:
            NumericError: The loss was not finite at one of the steps.
        """
        losses = torch.stack([readings["inversion_loss"] for readings in self._readings])
        if not bool(losses.isfinite().all()):
            raise NumericError(
                f"methods.{self._method}",
                "the inversion loss is not finite",
                "lower its learning rates",
            )
        kept = self._readings[int(losses.argmin())]
        return self._kept, {name: float(value) for name, value in kept.items()}


class InversionSource(BankSource):
    """Images made in calls that invert the teacher: some without a student, then one a refresh.

    A method says in ``invert`` how a call comes to its images.

    Attributes:
        method: Key of the method, for messages.
        weights: Of the terms of its loss, by their names.
        calls: Calls made so far.

    Args:
        context: Teacher, dataset, bank and seed.
        params: The method's values, of a ``CallsBlock``.

    Raises:
        UserError: The teacher has no BatchNorm statistics to invert.
    """

    method: ClassVar[str]
    kept: ClassVar[tuple[str, ...]] = ("calls",)

    def __init__(self, context: SourceContext, params: Any) -> None:
        require_batch_norm(context.teacher, self.method, type(context.teacher.backbone).__name__)
        super().__init__(context, params)
        self.weights = params.weights
        self.calls = 0
        self._statistics = BatchNormStatistics(context.teacher)

    @property
    def num_preparations(self) -> int:
        """The calls of the warm-up."""
        return int(self.params.warmup_calls)

    def prepare(self) -> Iterator[dict[str, float]]:
        """Make the calls of the warm-up, which need no student; see the base class."""
        while self.calls < self.params.warmup_calls:
            yield self._synthesise(None)

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Make one call, against ``student`` if that has a weight; see the base class."""
        return self._synthesise(student if self.weights["adversarial"] > 0 else None)

    def _synthesise(self, student: PixelModel | None) -> dict[str, float]:
        """Add one inverted batch to the bank; return its readings, and the bank's new length."""
        with frozen(self.context.teacher, *([] if student is None else [student])):
            images, readings = self.invert(student)
        self.bank.append(images)
        self.calls += 1
        return {**readings, "bank": float(len(self.bank))}

    def invert(self, student: PixelModel | None) -> tuple[Tensor, dict[str, float]]:
        """Return the best batch that a call finds, in [0, 1], and its readings.

        These are the unweighted terms of the loss, and ``inversion_loss``, their weighted sum.

        Args:
            student: Frozen, as the teacher is; None: the call is without one.
        """
        raise NotImplementedError

    def reading(self) -> AbstractContextManager[BatchNormStatistics | None]:
        """Return what reads the teacher's batch statistics, where a term asks for them."""
        return self._statistics if self.weights["bn"] > 0 else nullcontext()

    def targets(self) -> Tensor:
        """Draw the classes that a batch of images is to show, (B,), on the CPU."""
        size = (self.params.batch_size,)
        return torch.randint(self.context.spec.num_classes, size, generator=self.random)
