from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdci.config.catalog import DATASETS
from kdci.data.datasets.labelled import Split
from kdci.data.datasets.loading import check_dataset, load_split
from kdci.errors import UserError


def test_digits_fit_their_spec() -> None:
    check_dataset(DATASETS["digits"], None, ["train", "test"])
    spec = DATASETS["digits"]
    data = load_split(DATASETS["digits"], path=None, split="train")
    assert tuple(data.images.shape[1:]) == (spec.channels, spec.image_size, spec.image_size)
    assert sorted(set(data.labels.tolist())) == list(range(spec.num_classes))


@pytest.mark.parametrize("bad", [-1, 10])
def test_a_label_outside_the_classes_names_its_row(
    bad: int,
    tmp_path: Path,
    rgb: Callable[..., np.ndarray],
    encode_image: Callable[..., bytes],
    make_parquet: Callable[..., Path],
) -> None:
    blobs = [encode_image(image) for image in rgb(3)]
    make_parquet(tmp_path / "train-00000-of-00001.parquet", blobs, label=[0, 9, bad])
    with pytest.raises(UserError, match=f"image 2 has label {bad}"):
        load_split(DATASETS["cifar10"], path=tmp_path, split="train")


def test_an_empty_split_is_refused(tmp_path: Path, make_parquet: Callable[..., Path]) -> None:
    make_parquet(tmp_path / "train-00000-of-00001.parquet", [], label=[])
    with pytest.raises(UserError, match="no images"):
        load_split(DATASETS["cifar10"], path=tmp_path, split="train")


@pytest.mark.slow
def test_real_cifar10_has_the_published_counts(real_data: Path) -> None:
    check_dataset(DATASETS["cifar10"], real_data, ["train", "test"])
    splits: list[tuple[Split, int]] = [("train", 5000), ("test", 1000)]
    for split, per_class in splits:
        data = load_split(DATASETS["cifar10"], path=real_data, split=split)
        assert len(data) == 10 * per_class
        assert data.labels.bincount().tolist() == [per_class] * 10
        mean = data.images[:].double().mean((0, 2, 3)) / 255
        published = torch.tensor(DATASETS["cifar10"].mean, dtype=torch.float64)
        assert torch.allclose(mean, published, atol=5e-3)
