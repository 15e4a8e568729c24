"""Pools whose shift is built in and known: another pool's images, resampled and degraded.

Class imbalance as in long-tailed recognition (Cui et al., CVPR 2019): from the most to the least
frequent class the counts fall geometrically, by the imbalance ratio in all. Quality: blur, noise,
loss of contrast. All of it works on images that a method made or chose; none asks for original
data.
"""

# M = images of the bank, B = images of the shifted pool, K = classes

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kdci.data.bank.image_bank import to_bytes


def long_tail_counts(num_images: int, num_classes: int, imbalance: float) -> Tensor:
    """Return the images of each class, the most frequent first; (K,) int64, summing to B.

    Shares are proportional to imbalance^(-rank / (K - 1)); what rounding leaves goes to the
    largest remainders.

    Args:
        num_images: B, images in all.
        num_classes: K.
        imbalance: Ratio of the largest class to the smallest, at least 1 (balanced).

    Raises:
        ValueError: The imbalance is below 1, or a class would have no image.
    """
    if imbalance < 1:
        raise ValueError(f"imbalance must be at least 1, got {imbalance}")
    ranks = torch.arange(num_classes, dtype=torch.float64)
    shares = imbalance ** (-ranks / max(num_classes - 1, 1))
    exact = num_images * shares / shares.sum()
    counts = exact.floor().long()
    missing = num_images - int(counts.sum())
    counts[torch.argsort(exact - counts, descending=True, stable=True)[:missing]] += 1
    if int(counts.min()) < 1:
        raise ValueError(f"{num_images} images leave a class without any at imbalance {imbalance}")
    return counts


def resample_rows(
    classes_M: Tensor, *, num_images: int, num_classes: int, imbalance: float, seed: int
) -> Tensor:
    """Choose rows of a bank so that its classes follow a long tail.

    Which class is frequent and which is rare is drawn. Within a class rows are drawn without
    replacement; a class with too few repeats all of its rows before any a further time.

    Args:
        classes_M: The teacher's class of each row; (M,).
        num_images: B.
        num_classes: K.
        imbalance: See ``long_tail_counts``.
        seed: Of the draw.

    Returns:
        (B,) int64 rows, in random order.

    Raises:
        ValueError: The bank has no image of some class; see also ``long_tail_counts``.
    """
    random = torch.Generator().manual_seed(seed)
    counts_K = long_tail_counts(num_images, num_classes, imbalance)
    classes_K = torch.randperm(num_classes, generator=random)
    # A stream for each class: how many of one are drawn shifts the draw of no other, so that pools
    # of other imbalances share as many images as their counts allow.
    streams_K = torch.randint(2**62, (num_classes,), generator=random)
    parts = []
    for class_index, count in zip(classes_K.tolist(), counts_K.tolist(), strict=True):
        members = torch.nonzero(classes_M == class_index).flatten()
        if not len(members):
            raise ValueError(f"the bank has no image of class {class_index}")
        stream = torch.Generator().manual_seed(int(streams_K[class_index]))
        passes = -(-count // len(members))
        orders = [torch.randperm(len(members), generator=stream) for _ in range(passes)]
        parts.append(members[torch.cat(orders)[:count]])
    rows_B = torch.cat(parts)
    return rows_B[torch.randperm(len(rows_B), generator=random)]


def degrade_chunks(
    chunks: Iterable[Tensor], *, blur: float, noise: float, contrast: float, seed: int
) -> Iterator[Tensor]:
    """Lower the quality of images that need not fit into memory: blur, then contrast, then noise.

    Args:
        chunks: Parts of the images in order, uint8 (B, C, H, W). Of the same parts the same
            bytes come out; of one part for all, where the parts have whole multiples of 16
            values, as torch draws normal numbers by sixteens.
        blur: Standard deviation of a Gaussian in pixels; 0 for none.
        noise: Standard deviation of Gaussian noise on the [0, 1] scale; 0 for none.
        contrast: Factor on the distance to the image's own mean, above 0; 1 for none.
        seed: Of the noise.

    Yields:
        Each part degraded, uint8 of the same shape; the part itself where nothing is asked for.

    Raises:
        ValueError: A strength is negative, or the contrast not above 0.
    """
    if not (blur >= 0 and noise >= 0 and contrast > 0):
        raise ValueError(
            "need blur and noise of 0 or more and contrast above 0, "
            f"got {blur}, {noise} and {contrast}"
        )
    random = torch.Generator().manual_seed(seed)
    for chunk_BCHW in chunks:
        if blur == 0 and noise == 0 and contrast == 1:
            yield chunk_BCHW
        else:
            pixels = chunk_BCHW.float() / 255
            yield to_bytes(_degraded(pixels, blur, noise, contrast, random))


def _degraded(
    pixels_BCHW: Tensor, blur: float, noise: float, contrast: float, random: torch.Generator
) -> Tensor:
    pixels = pixels_BCHW
    if blur > 0:
        pixels = _blurred(pixels, blur)
    if contrast != 1:
        means = pixels.mean(dim=(1, 2, 3), keepdim=True)
        pixels = means + contrast * (pixels - means)
    if noise > 0:
        pixels = pixels + noise * torch.randn(pixels.shape, generator=random)
    return pixels


def _blurred(pixels_BCHW: Tensor, sigma: float) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur  # seconds to import

    radius = min(max(1, round(3 * sigma)), min(pixels_BCHW.shape[-2:]) - 1)
    blurred: Tensor = gaussian_blur(
        pixels_BCHW, kernel_size=[2 * radius + 1] * 2, sigma=[sigma] * 2
    )
    return blurred
