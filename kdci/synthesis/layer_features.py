"""What an image looks like to several layers of a network at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdci.models.resnet import ResNet


def feature_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose inputs describe an image, in the order of ``model.modules()``.

    All BatchNorm2d layers; in a ResNet the four stages instead, which makes 512 features of
    the thousands that its BatchNorms would give (CMI: Fang et al., IJCAI 2021, public code,
    where this is written for ResNet-34 alone).

    Args:
        model: A backbone, or a model around one.
    """
    for module in model.modules():
        if isinstance(module, ResNet):
            return [module.layer1, module.layer2, module.layer3, module.layer4]
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


class LayerFeatures:
    """Reads the spatial means of layers' inputs while used as a context.

    Outside of ``with`` nothing is hooked; the same object can be entered again.

    Args:
        layers: Modules that take feature maps (B, C, H, W), each once per forward pass.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        self._handles: list[RemovableHandle] = []
        self._means: dict[int, Tensor] = {}

    def __enter__(self) -> LayerFeatures:
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

    def _reader(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Under autocast the input may be bfloat16, too coarse to sum over an image.
            self._means[index] = inputs[0].float().mean(dim=(2, 3))

        return read

    @property
    def features(self) -> Tensor:
        """Features of the last forward pass's images, with gradient: (B, d) float32.

        d is the sum of the layers' input channels, in the order of the layers.
        """
        return torch.cat([self._means[index] for index in range(len(self._layers))], dim=1)
