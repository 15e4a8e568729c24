"""Names and facts of datasets and backbones, without importing torch.

``kdci.config.params`` validates against these before torch is loaded; a test holds the
builders in ``kdci.data`` and ``kdci.models`` to the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset without opening it.

    Attributes:
        name: Key in ``DATASETS``.
        num_classes: Number of classes K.
        image_size: Height and width in pixels.
        channels: Number of colour channels.
        mean: Per-channel mean of the training images on the [0, 1] scale.
        std: Per-channel standard deviation on the [0, 1] scale. For CIFAR the field's values,
            which are nearer to the mean of the images' own deviations.
        crop_padding: Zero padding in pixels of the random crop that keeps labels true.
        flip: Whether a horizontal flip keeps labels true.
        stated_names: Of the classes, in label order, with which files are compared; or none.
        bundled: Whether it comes with a package, so that it needs no path.
        resized_crop: If given, training images are random boxes of this range of shares of the
            image's area, enlarged again, in the place of padded crops.
        square_share: If given, photographs of any size are read: the centred square that has
            this share of the shorter side is resized. None: every image has ``image_size``.
    """

    name: str
    num_classes: int
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False
    stated_names: tuple[str, ...] = field(default=(), repr=False)
    bundled: bool = False
    resized_crop: tuple[float, float] | None = None
    square_share: float | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in label order; their numbers where none are known."""
        return self.stated_names or tuple(map(str, range(self.num_classes)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)


def facts_of_spec(spec: DatasetSpec) -> dict[str, Any]:
    """Return what the card of a network tells of its dataset; see ``spec_of_facts``."""
    return {
        "dataset": spec.name,
        "num_classes": spec.num_classes,
        "channels": spec.channels,
        "image_size": spec.image_size,
        # Of a custom dataset nothing else tells who gets a network what its answers mean.
        **({"class_names": list(spec.stated_names)} if spec.stated_names else {}),
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def spec_of_facts(facts: Mapping[str, Any]) -> DatasetSpec:
    """Return a dataset as far as the card of a network tells of it: enough to build the network.

    Args:
        facts: Of a teacher's or a student's card.
    """
    return DatasetSpec(
        facts["dataset"],
        facts["num_classes"],
        facts["image_size"],
        facts["channels"],
        tuple(facts["mean"]),
        tuple(facts["std"]),
    )


_DIGITS = DatasetSpec(
    name="digits",
    num_classes=10,
    image_size=16,
    channels=1,
    mean=(0.3039,),
    std=(0.3179,),
    crop_padding=1,
    stated_names=tuple("0123456789"),
    bundled=True,
)
_CIFAR10 = DatasetSpec(
    name="cifar10",
    num_classes=10,
    image_size=32,
    channels=3,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    crop_padding=4,
    flip=True,
    stated_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
)
_SPECS = (
    _DIGITS,
    # Digits 0 to 4 alone: what another pre-trained model, of other classes, is trained on.
    replace(_DIGITS, name="digits5", num_classes=5, stated_names=tuple("01234")),
    _CIFAR10,
    replace(
        _CIFAR10,
        name="cifar100",
        num_classes=100,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        stated_names=(),
    ),
    # Normalised as the public code of CMI and MosaicKD has it.
    replace(
        _CIFAR10,
        name="tiny-imagenet",
        num_classes=200,
        image_size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stated_names=(),
    ),
    # Evaluated as everywhere: the shorter side to 256, then the centred 224.
    DatasetSpec(
        name="imagenet",
        num_classes=1000,
        image_size=224,
        channels=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        flip=True,
        resized_crop=(0.08, 1.0),
        square_share=224 / 256,
    ),
)
DATASETS = {spec.name: spec for spec in _SPECS}

CUSTOM = "custom"
"""A dataset of the user's: its facts stand in `data.facts`, its files in a folder or Parquet."""

BACKBONE_NAMES: tuple[str, ...] = (
    "mobilenetv2",
    "resnet-18",
    "resnet-34",
    "resnet-50",
    "vgg-11",
    "wrn-10-1",
    "wrn-16-1",
    "wrn-16-2",
    "wrn-40-1",
    "wrn-40-2",
)

FOREIGN_BACKBONE = re.compile(r"(torchvision|timm)-[a-z0-9][a-z0-9_]{0,54}")
"""A classifier of another library by its name there: `torchvision-efficientnet_b0`."""

STEMS = ("cifar", "imagenet")
"""First layers of a network: `cifar` keeps the resolution, `imagenet` divides it by four."""

LARGEST_FOR_CIFAR_STEM = 64
"""Side in pixels up to which `auto` takes the CIFAR stem."""


def is_backbone(name: str) -> bool:
    """Tell whether a backbone has a lawful name; whether its library knows it is seen later."""
    return name in BACKBONE_NAMES or FOREIGN_BACKBONE.fullmatch(name) is not None


def stem_for(stem: str, image_size: int) -> str:
    """Return the stem that `auto` means for images of this side in pixels."""
    if stem != "auto":
        return stem
    return "cifar" if image_size <= LARGEST_FOR_CIFAR_STEM else "imagenet"
