"""Tools of model inversion: a frozen teacher, its BatchNorm statistics, the best batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdci.errors import NumericError, UserError
from kdci.synthesis.batch_statistics import variance_and_mean
from kdci.synthesis.layer_inputs import LayerInputs


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
    def means(self) -> list[Tensor]:
        """Batch means at the last forward pass, L tensors of shape (C,), float32."""
        return [mean_C for _, mean_C in self.readings]

    @property
    def variances(self) -> list[Tensor]:
        """Biased batch variances at the last forward pass, like ``means``."""
        return [variance_C for variance_C, _ in self.readings]

    @property
    def running_means(self) -> list[Tensor]:
        """Running means of the layers, float32."""
        return [
            layer.running_mean.float() for layer in self._norms if layer.running_mean is not None
        ]

    @property
    def running_variances(self) -> list[Tensor]:
        """Running variances of the layers, float32."""
        return [layer.running_var.float() for layer in self._norms if layer.running_var is not None]


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
