"""What some layers of a network are given, and what an image looks like to them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MOST_FEATURES = 4096
"""Above it, the square projection of the features alone would take more than 64 MiB."""

_STAGES = ("layer1", "layer2", "layer3", "layer4")
"""What a ResNet's stages are called here, in torchvision and in timm."""


Reading = TypeVar("Reading")


class LayerInputs(Generic[Reading]):
    """Reads the inputs of layers while used as a context, one reading a layer.

    Outside of ``with`` nothing is hooked, so ordinary forward passes cost nothing; the same
    object can be entered again.

    Args:
        layers: Modules that take feature maps (B, C, H, W), each once per forward pass.
        read: Returns what is kept of an input. Under autocast that may be bfloat16, too coarse
            to sum over a batch or an image.
    """

    def __init__(self, layers: Sequence[nn.Module], read: Callable[[Tensor], Reading]) -> None:
        self._layers = list(layers)
        self._read = read
        self._handles: list[RemovableHandle] = []
        self._readings: dict[int, Reading] = {}

    def __enter__(self) -> Self:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._hook(index)))
        return self

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # The readings hold the graph of the last forward pass alive.
        self._readings.clear()

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._readings[index] = self._read(inputs[0])

        return keep

    @property
    def readings(self) -> list[Reading]:
        """Readings of the last forward pass, in the order of the layers."""
        return [self._readings[index] for index in range(len(self._layers))]


def feature_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose inputs describe an image, in the order of ``model.modules()``.

    All BatchNorm2d layers; in a ResNet the four stages instead, which makes 512 features of
    the thousands that its BatchNorms would give (CMI: Fang et al., IJCAI 2021, public code,
    where this is written for ResNet-34 alone). Where BatchNorms give more than
    ``MOST_FEATURES``, every second is read, or every third, and so on.

    Args:
        model: A backbone, or a model around one.
    """
    for module in model.modules():
        children = dict(module.named_children())
        if all(stage in children for stage in _STAGES):
            return [children[stage] for stage in _STAGES]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    step = 1
    while sum(norm.num_features for norm in norms[::step]) > MOST_FEATURES and step < len(norms):
        step += 1
    return [*norms[::step]]


class LayerFeatures(LayerInputs[Tensor]):
    """Reads the spatial means of layers' inputs while used as a context.

    Args:
        layers: Modules that take feature maps (B, C, H, W), each once per forward pass.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers, _spatial_means)

    @property
    def features(self) -> Tensor:
        """Features of the last forward pass's images, with gradient: (B, d) float32.

        d is the sum of the layers' input channels, in the order of the layers.
        """
        return torch.cat(self.readings, dim=1)


def _spatial_means(features_BCHW: Tensor) -> Tensor:
    return features_BCHW.mean(dim=(2, 3), dtype=torch.float32)
