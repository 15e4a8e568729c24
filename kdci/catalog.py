"""Names and facts of datasets and backbones, without importing torch.

``kdci.config`` validates against these before torch is loaded; a test holds the
builders in ``kdci.data`` and ``kdci.models`` to the same names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


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
        class_names: Names of the classes, in label order.
        bundled: Whether it comes with a package, so that it needs no path.
    """

    name: str
    num_classes: int
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    class_names: tuple[str, ...] = field(repr=False)
    bundled: bool = False


_DIGITS = DatasetSpec(
    name="digits",
    num_classes=10,
    image_size=16,
    channels=1,
    mean=(0.3039,),
    std=(0.3179,),
    crop_padding=1,
    flip=False,
    class_names=tuple("0123456789"),
    bundled=True,
)
DATASETS: dict[str, DatasetSpec] = {
    "digits": _DIGITS,
    # Digits 0 to 4 alone: what another pre-trained model, of other classes, is trained on.
    "digits5": replace(_DIGITS, name="digits5", num_classes=5, class_names=tuple("01234")),
    "cifar10": DatasetSpec(
        name="cifar10",
        num_classes=10,
        image_size=32,
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        crop_padding=4,
        flip=True,
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
}

BACKBONE_NAMES: tuple[str, ...] = (
    "resnet-18",
    "resnet-34",
    "vgg-11",
    "wrn-10-1",
    "wrn-16-1",
    "wrn-16-2",
    "wrn-40-1",
    "wrn-40-2",
)

CONTROL_NAMES: tuple[str, ...] = ("noise",)
"""What methods are measured against; no methods themselves."""
