"""Every dataset of the tables in its layout on disk, with as few images as it can have."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def write_all(root: Path) -> Path:
    """Write all datasets and an open world below ``root`` and return it."""
    random = np.random.default_rng(0)
    _cifar(root, random)
    _tiny_imagenet(root / "tiny-imagenet-200", random)
    _imagenet(root / "imagenet", random)
    place = root / "open-world"
    place.mkdir()
    for number in range(64):
        (place / f"{number}.jpg").write_bytes(_picture(random, 40, 48))
    return root


def _cifar(root: Path, random: np.random.Generator) -> None:
    """Write the files of ``cifar-10-python.tar.gz`` and of ``cifar-100-python.tar.gz``."""
    places = {
        "cifar-10-batches-py": (
            {**{f"data_batch_{n}": 20 for n in range(1, 6)}, "test_batch": 20},
            b"labels",
            10,
        ),
        "cifar-100-python": ({"train": 100, "test": 100}, b"fine_labels", 100),
    }
    for folder, (files, labels, num_classes) in places.items():
        (root / folder).mkdir(parents=True)
        for file, count in files.items():
            content = {
                b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
                labels: [int(n) % num_classes for n in range(count)],
                b"filenames": [b"x.png"] * count,
            }
            (root / folder / file).write_bytes(pickle.dumps(content, protocol=2))


def _tiny_imagenet(root: Path, random: np.random.Generator) -> None:
    names = [f"n{number:08d}" for number in range(200)]
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(reversed(names)) + "\n")
    lines = []
    for number, name in enumerate(names):
        place = root / "train" / name / "images"
        place.mkdir(parents=True)
        (place / f"{name}_0.JPEG").write_bytes(_picture(random, 64, 64))
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(_picture(random, 64, 64))
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def _imagenet(root: Path, random: np.random.Generator) -> None:
    pictures = [_picture(random, 96, 120), _picture(random, 130, 90)]
    for number in range(1000):
        for split in ("train", "val"):
            place = root / split / f"n{number:08d}"
            place.mkdir(parents=True)
            (place / f"{split}_{number}.JPEG").write_bytes(pictures[number % 2])


def _picture(random: np.random.Generator, height: int, width: int) -> bytes:
    out = BytesIO()
    small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height)).save(out, "JPEG")
    return out.getvalue()
