"""Tools of model inversion: a frozen teacher, its BatchNorm statistics, the best batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdci.errors import NumericError, UserError

# The axes of (B, C, H, W) that BatchNorm takes its statistics over.
_BATCH_AND_SPACE = (0, 2, 3)


class BatchNormStatistics:
    """Reads the batch statistics of every BatchNorm2d input while used as a context.

    Outside of ``with`` nothing is hooked, so ordinary forward passes cost nothing. Layers
    that track no running statistics are left out: there is nothing to compare them with.

    Args:
        model: The model to read, usually the teacher in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            module
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]
        self._handles: list[RemovableHandle] = []
        self._means: dict[int, Tensor] = {}
        self._variances: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._layers)

    def __enter__(self) -> BatchNormStatistics:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._reader(index)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # The readings hold the graph of the last forward pass alive.
        self._means.clear()
        self._variances.clear()

    def _reader(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Under autocast the input may be bfloat16, too coarse to sum over a batch.
            features_BCHW = inputs[0].float()
            variance_C, mean_C = torch.var_mean(features_BCHW, dim=_BATCH_AND_SPACE, correction=0)
            self._means[index] = mean_C
            self._variances[index] = variance_C

        return read

    @property
    def means(self) -> list[Tensor]:
        """Batch means at the last forward pass, L tensors of shape (C,), float32."""
        return [self._means[index] for index in range(len(self))]

    @property
    def variances(self) -> list[Tensor]:
        """Biased batch variances at the last forward pass, like ``means``."""
        return [self._variances[index] for index in range(len(self))]

    @property
    def running_means(self) -> list[Tensor]:
        """Running means of the layers, float32."""
        return [
            layer.running_mean.float() for layer in self._layers if layer.running_mean is not None
        ]

    @property
    def running_variances(self) -> list[Tensor]:
        """Running variances of the layers, float32."""
        return [
            layer.running_var.float() for layer in self._layers if layer.running_var is not None
        ]


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
