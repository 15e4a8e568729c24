"""The pairs of teacher and student in published tables."""

from __future__ import annotations

Pair = tuple[str, str]

R34_R18: Pair = ("resnet-34", "resnet-18")
VGG11_R18: Pair = ("vgg-11", "resnet-18")
W402_W161: Pair = ("wrn-40-2", "wrn-16-1")
CIFAR_PAIRS = (R34_R18, VGG11_R18, W402_W161, ("wrn-40-2", "wrn-40-1"), ("wrn-40-2", "wrn-16-2"))
R50_R18: Pair = ("resnet-50", "resnet-18")
R50_MOBILE: Pair = ("resnet-50", "mobilenetv2")
