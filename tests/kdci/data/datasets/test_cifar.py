from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdci.config.catalog import DATASETS
from kdci.data.datasets.labelled import Split
from kdci.data.datasets.loading import check_dataset, load_split
from kdci.errors import IntegrityError, UserError

SPEC = DATASETS["cifar10"]
Make = Callable[..., Path]
BOTH: list[Split] = ["train", "test"]


@pytest.fixture
def parquet_root(
    tmp_path: Path,
    rgb: Callable[..., np.ndarray],
    encode_image: Callable[..., bytes],
    make_parquet: Make,
) -> Path:
    """root/cifar10/plain_text with two train shards and one test shard."""
    folder = tmp_path / "root" / "cifar10" / "plain_text"
    blobs = [encode_image(image) for image in rgb(9)]
    make_parquet(folder / "train-00001-of-00002.parquet", blobs[3:6], label=[3, 4, 5])
    make_parquet(folder / "train-00000-of-00002.parquet", blobs[:3], label=[0, 1, 2])
    make_parquet(folder / "test-00000-of-00001.parquet", blobs[6:], label=[6, 7, 8])
    return tmp_path / "root"


@pytest.fixture
def batches_root(tmp_path: Path, rgb: Callable[..., np.ndarray]) -> Path:
    """root/cifar-10-batches-py as torchvision leaves it."""
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    flat = rgb(12).transpose(0, 3, 1, 2).reshape(12, 3072)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for index, name in enumerate(names):
        rows = slice(2 * index, 2 * index + 2)
        content = {"data": flat[rows], "labels": [index, 9 - index], "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(content, 2))
    return tmp_path / "root"


@pytest.mark.parametrize("below", ["", "cifar10", "cifar10/plain_text"])
def test_parquet_is_found_from_any_folder_above_it(
    below: str, parquet_root: Path, rgb: Callable[..., np.ndarray]
) -> None:
    path = parquet_root / below
    check_dataset(SPEC, path, BOTH)
    train, test = (load_split(SPEC, path=path, split=split) for split in BOTH)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert test.labels.tolist() == [6, 7, 8]
    assert np.array_equal(train.images[:].numpy(), rgb(9)[:6].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_batches_are_found_and_joined_in_order(
    below: str, batches_root: Path, rgb: Callable[..., np.ndarray]
) -> None:
    path = batches_root / below
    check_dataset(SPEC, path, BOTH)
    train, test = (load_split(SPEC, path=path, split=split) for split in BOTH)
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert test.labels.tolist() == [5, 4]
    assert np.array_equal(train.images[:].numpy(), rgb(12)[:10].transpose(0, 3, 1, 2))
    assert np.array_equal(test.images[:].numpy(), rgb(12)[10:].transpose(0, 3, 1, 2))


def one_line(error: UserError, subject: Path) -> str:
    (line,) = error.lines()
    assert "\n" not in str(error)
    assert str(subject) in line
    assert "expected PATH/cifar10/plain_text" in line
    return line


def test_missing_things_are_one_line_with_the_expected_tree(
    tmp_path: Path, parquet_root: Path
) -> None:
    with pytest.raises(UserError, match=r"data\.path"):
        check_dataset(SPEC, None, ["train"])
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(UserError) as caught:
            check_dataset(SPEC, path, ["train"])
        one_line(caught.value, path)
    folder = parquet_root / "cifar10" / "plain_text"
    (folder / "test-00000-of-00001.parquet").unlink()
    check_dataset(SPEC, parquet_root, ["train"])
    with pytest.raises(UserError, match="no test files") as caught:
        check_dataset(SPEC, parquet_root, BOTH)
    one_line(caught.value, parquet_root)
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="one of 2 shards, 1 found"):
        load_split(SPEC, path=parquet_root, split="train")


def test_a_missing_batch_is_named(batches_root: Path) -> None:
    (batches_root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match="data_batch_3 missing") as caught:
        load_split(SPEC, path=batches_root, split="train")
    one_line(caught.value, batches_root)


def test_a_damaged_batch_is_an_integrity_error(batches_root: Path) -> None:
    file = batches_root / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(IntegrityError, match="test_batch"):
        load_split(SPEC, path=batches_root, split="test")


def test_the_quick_check_sees_a_wrong_dataset(
    tmp_path: Path, make_parquet: Make, encode_image: Callable[..., bytes]
) -> None:
    blob = encode_image(np.zeros((64, 64, 3), np.uint8))
    make_parquet(tmp_path / "a" / "train-0.parquet", [blob], label=[0])
    with pytest.raises(UserError, match="64x64"):
        check_dataset(SPEC, tmp_path / "a", ["train"])
    make_parquet(tmp_path / "b" / "train-0.parquet", [blob])
    with pytest.raises(UserError, match="no label column"):
        check_dataset(SPEC, tmp_path / "b", ["train"])


CIFAR100 = DATASETS["cifar100"]


@pytest.fixture
def cifar100_root(tmp_path: Path, rgb: Callable[..., np.ndarray]) -> Path:
    """root/cifar-100-python as torchvision leaves it."""
    folder = tmp_path / "root" / "cifar-100-python"
    folder.mkdir(parents=True)
    flat = rgb(5).transpose(0, 3, 1, 2).reshape(5, 3072)
    for name, rows, labels in (("train", slice(3), [99, 0, 42]), ("test", slice(3, 5), [7, 98])):
        content = {
            "filenames": [f"{label}.png" for label in labels],
            "batch_label": f"{name} batch 1 of 1",
            "fine_labels": labels,
            "coarse_labels": [label % 20 for label in labels],
            "data": flat[rows],
        }
        (folder / name).write_bytes(pickle.dumps(content, 2))
    names = {"fine_label_names": ["apple"], "coarse_label_names": ["fruit"]}
    (folder / "meta").write_bytes(pickle.dumps(names, 2))
    return tmp_path / "root"


@pytest.mark.parametrize("below", ["", "cifar-100-python"])
def test_fine_labels_of_cifar100s_own_files(
    below: str, cifar100_root: Path, rgb: Callable[..., np.ndarray]
) -> None:
    path = cifar100_root / below
    check_dataset(CIFAR100, path, BOTH)
    train, test = (load_split(CIFAR100, path=path, split=split) for split in BOTH)
    assert train.labels.tolist() == [99, 0, 42]
    assert test.labels.tolist() == [7, 98]
    assert np.array_equal(test.images[:].numpy(), rgb(5)[3:].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("image", ["img", "image"])
def test_fine_labels_of_cifar100s_parquet(
    image: str,
    tmp_path: Path,
    rgb: Callable[..., np.ndarray],
    encode_image: Callable[..., bytes],
    make_parquet: Make,
) -> None:
    folder = tmp_path / "cifar100" / "cifar100"
    blobs = [encode_image(pixels) for pixels in rgb(3)]
    for name, rows in (("train", slice(2)), ("test", slice(2, 3))):
        labels = [99, 3, 50][rows]
        make_parquet(
            folder / f"{name}-00000-of-00001.parquet",
            blobs[rows],
            image=image,
            fine_label=labels,
            coarse_label=[0] * len(labels),
        )
    check_dataset(CIFAR100, tmp_path, BOTH)
    assert load_split(CIFAR100, path=tmp_path, split="train").labels.tolist() == [99, 3]
    assert load_split(CIFAR100, path=folder, split="test").labels.tolist() == [50]


def test_cifar10_is_not_taken_for_cifar100(batches_root: Path) -> None:
    with pytest.raises(UserError, match="no train files of CIFAR-100") as caught:
        check_dataset(CIFAR100, batches_root, ["train"])
    assert "expected PATH/cifar100/cifar100/{train,test}-*.parquet" in str(caught.value)
    assert "PATH/cifar-100-python/{train,test}" in str(caught.value)
