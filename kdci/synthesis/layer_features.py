"""What an image looks like to several layers of a network at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdci.models.resnet import ResNet
from kdci.synthesis.layer_inputs import LayerInputs


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


class LayerFeatures(LayerInputs[Tensor]):
    """Reads the spatial means of layers' inputs while used as a context.

    Args:
        layers: Modules that take feature maps (B, C, H, W), each once per forward pass.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers, lambda features_BCHW: features_BCHW.mean(dim=(2, 3)))

    @property
    def features(self) -> Tensor:
        """Features of the last forward pass's images, with gradient: (B, d) float32.

        d is the sum of the layers' input channels, in the order of the layers.
        """
        return torch.cat(self.readings, dim=1)
