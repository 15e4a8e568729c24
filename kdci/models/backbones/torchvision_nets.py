"""ResNet-50 and MobileNetV2 as torchvision builds them, with a choice of the first layers.

Parameters have torchvision's names, so its checkpoints fit; nothing is ever downloaded.
Initialisation is torchvision's, in both stems.
"""

from __future__ import annotations

from torch import nn

from kdci.models.backbones.resnet import stem_convolution, stem_pooling
from kdci.models.predicting import last_linear, predict_with_, without_chance_

# Expansion, width, blocks and stride of the stages of MobileNetV2 (Sandler et al., CVPR 2018).
_STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def build_resnet50(*, num_classes: int, channels: int, stem: str = "cifar") -> nn.Module:
    """Return a ResNet-50; D is 2048.

    Args:
        num_classes: Number of classes K.
        channels: Number of image channels C.
        stem: ``cifar``: a 3x3 convolution; ``imagenet``: a 7x7 one of stride 2, then 3x3
            max-pooling of stride 2.
    """
    from torchvision.models import resnet50  # seconds to import

    network = resnet50(weights=None, num_classes=num_classes)
    if (channels, stem) != (3, "imagenet"):
        network.conv1 = stem_convolution(channels, stem)
        _initialise(network.conv1)
        network.maxpool = stem_pooling(stem)
    return _predicting(network)


def build_mobilenetv2(*, num_classes: int, channels: int, stem: str = "cifar") -> nn.Module:
    """Return a MobileNetV2 of width 1; D is 1280.

    Args:
        num_classes: Number of classes K.
        channels: Number of image channels C.
        stem: ``imagenet`` is the network as published; in ``cifar``, as is usual for images
            of 32 px, the first convolution and the first stage with a stride have none.
    """
    from torchvision.models import mobilenet_v2  # seconds to import

    stages = [list(stage) for stage in _STAGES]
    if stem == "cifar":
        stages[1][-1] = 1
    network = mobilenet_v2(weights=None, num_classes=num_classes, inverted_residual_setting=stages)
    if (channels, stem) != (3, "imagenet"):
        stride = 1 if stem == "cifar" else 2
        first = nn.Conv2d(channels, 32, 3, stride=stride, padding=1, bias=False)
        _initialise(first)
        network.features[0][0] = first
    return _predicting(network)


def _initialise(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")


def _predicting(network: nn.Module) -> nn.Module:
    head = last_linear(network)
    assert head is not None
    return predict_with_(without_chance_(network), head)
