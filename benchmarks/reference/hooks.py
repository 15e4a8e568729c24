"""Forward hooks of the baselines: registered once on the teacher, they fire in every forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class StatisticsHook:
    """Distance of a BatchNorm's batch statistics from its running ones, at the last forward.

    Attributes:
        distance: ||running variance - variance|| + ||running mean - mean||, with its graph.

    Args:
        layer: Hooked from now on.
        momentum: Share of what ``remember`` has kept in the statistics that are compared.
    """

    def __init__(self, layer: nn.BatchNorm2d, momentum: float = 0.0) -> None:
        self.distance: Tensor = torch.zeros(())
        self.momentum = momentum
        self._current: tuple[Tensor, Tensor] | None = None
        self._remembered: tuple[Tensor, Tensor] | None = None
        layer.register_forward_hook(self._read)

    def _read(self, layer: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        maps = inputs[0]
        mean = maps.mean([0, 2, 3])
        variance = maps.transpose(0, 1).contiguous().view(maps.shape[1], -1).var(1, unbiased=False)
        self._current = (mean.detach(), variance.detach())
        if self._remembered is not None:
            mean = self.momentum * self._remembered[0] + (1 - self.momentum) * mean
            variance = self.momentum * self._remembered[1] + (1 - self.momentum) * variance
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None and layer.running_var is not None
        self.distance = torch.norm(layer.running_var - variance, 2) + torch.norm(
            layer.running_mean - mean, 2
        )

    def remember(self) -> None:
        """Blend the last statistics into those that later ones are blended with."""
        assert self._current is not None
        if self._remembered is None:
            self._remembered = self._current
            return
        rate = self.momentum
        mean, variance = (
            rate * old + (1 - rate) * new
            for old, new in zip(self._remembered, self._current, strict=True)
        )
        self._remembered = (mean, variance)


class MeanHook:
    """Spatial means (B, C) of a layer's input at the last forward, with their graph."""

    def __init__(self, layer: nn.Module) -> None:
        self.means = torch.zeros(())
        layer.register_forward_hook(self._read)

    def _read(self, _layer: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        self.means = inputs[0].mean([2, 3])


def norms_of(model: nn.Module) -> Iterable[nn.BatchNorm2d]:
    """Yield the BatchNorm layers of a model."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
