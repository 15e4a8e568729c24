"""The discriminator of MosaicKD, which judges patches and never sees a whole image."""

from __future__ import annotations

from torch import Tensor, nn

from kdci.models.generators.generating import BesideTeacher
from kdci.models.generators.generator import SLOPE


class PatchDiscriminator(BesideTeacher):
    """Tells real patches of 10 x 10 pixels, 4 pixels apart, from made ones.

    Two strided convolutions and a 1 x 1 one: each logit depends on one patch alone, so that a
    generator that fools it borrows local patterns, not whole foreign objects (MosaicKD: Fang et
    al., NeurIPS 2021). Meant to stay in train mode, in which BatchNorm also lets the batch's
    statistics into every logit.

    Args:
        channels: Number of image channels C.
        width: Channels after the first convolution; the field calls it ndf.
    """

    def __init__(self, *, channels: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(2 * width, 1, 1, bias=False),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map normalised images (B, C, H, W) to logits of being real, (B, 1, H / 4, W / 4)."""
        with self.arithmetic.autocast(images_BCHW.device):
            logits_B1hw: Tensor = self.layers(self.arithmetic.lay_out(images_BCHW))
        return logits_B1hw.to(images_BCHW.dtype)
