from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdci.config.catalog import DATASETS
from kdci.data.datasets.labelled import Split
from kdci.data.datasets.loading import check_dataset, load_split
from kdci.errors import UserError

Make = Callable[..., Path]
BOTH: list[Split] = ["train", "test"]
SPEC = replace(DATASETS["tiny-imagenet"], num_classes=3)
# In the order of wnids.txt, which is not the order of labels.
WNIDS = ["n02124075", "n01443537", "n04067472"]
LABELS = {"n01443537": 0, "n02124075": 1, "n04067472": 2}


def level(value: int) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


@pytest.fixture
def root(tmp_path: Path, make_folders: Make, encode_image: Callable[..., bytes]) -> Path:
    """PATH/tiny-imagenet-200 as it is unzipped."""
    folder = tmp_path / "data" / "tiny-imagenet-200"
    classes = {wnid: [level(40 * k), level(40 * k + 9)] for k, wnid in enumerate(WNIDS)}
    make_folders(folder / "train", classes, kind="JPEG", below="images")
    for wnid in WNIDS:
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    images = folder / "val" / "images"
    images.mkdir(parents=True)
    table = []
    for number, wnid in enumerate([WNIDS[2], WNIDS[0], WNIDS[0], WNIDS[1]]):
        (images / f"val_{number}.JPEG").write_bytes(encode_image(level(50 * number), "JPEG"))
        table.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(table))
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "test" / "images" / "test_0.JPEG").write_bytes(encode_image(level(0), "JPEG"))
    return tmp_path / "data"


@pytest.mark.parametrize("below", ["", "tiny-imagenet-200"])
def test_the_official_folders(below: str, root: Path) -> None:
    path = root / below
    check_dataset(SPEC, path, BOTH)
    train, test = (load_split(SPEC, path=path, split=split) for split in BOTH)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (train.images[:, 0, 0, 0] - torch.tensor([40, 49, 0, 9, 80, 89])).abs().max() <= 1
    assert test.labels.tolist() == [2, 1, 1, 0]
    assert (test.images[:, 2, 9, 9] - torch.tensor([0, 50, 100, 150])).abs().max() <= 1
    assert test.images.shape == (4, 3, 64, 64) and test.labels.dtype == torch.int64


@pytest.mark.parametrize("keep", ["wnids", "train"])
def test_labels_come_from_either_list_of_classes(keep: str, root: Path) -> None:
    folder = root / "tiny-imagenet-200"
    if keep == "wnids":
        (folder / "train").rename(root / "elsewhere")
    else:
        (folder / "wnids.txt").unlink()
    assert load_split(SPEC, path=root, split="test").labels.tolist() == [2, 1, 1, 0]


def test_a_validation_split_sorted_into_classes(root: Path) -> None:
    val = root / "tiny-imagenet-200" / "val"
    for line in (val / "val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        (val / wnid).mkdir(exist_ok=True)
        (val / "images" / file).rename(val / wnid / file)
    (val / "images").rmdir()
    (val / "val_annotations.txt").unlink()
    check_dataset(SPEC, root, BOTH)
    data = load_split(SPEC, path=root, split="test")
    assert data.labels.tolist() == [0, 1, 1, 2]
    assert (data.images[:, 0, 0, 0] - torch.tensor([150, 50, 100, 0])).abs().max() <= 1


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_parquet(
    name: str, tmp_path: Path, encode_image: Callable[..., bytes], make_parquet: Make
) -> None:
    data = tmp_path / "data"
    train = "train-00000-of-00001-1359597a978bc4fa.parquet"
    test = f"{name}-00000-of-00001-70d52db3c749a935.parquet"
    blobs = [encode_image(level(value)) for value in (1, 2, 3)]
    make_parquet(data / train, blobs[:2], image="image", label=[2, 0])
    make_parquet(data / test, blobs[2:], image="image", label=[1])
    check_dataset(SPEC, tmp_path, BOTH)
    assert load_split(SPEC, path=tmp_path, split="train").labels.tolist() == [2, 0]
    found = load_split(SPEC, path=tmp_path, split="test")
    assert found.labels.tolist() == [1] and int(found.images[0, 0, 0, 0]) == 3


def table_of(root: Path) -> Path:
    return root / "tiny-imagenet-200" / "val" / "val_annotations.txt"


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no annotations": (lambda root: table_of(root).unlink(), "val_annotations.txt: no such file"),
    "another table": (
        lambda root: table_of(root).write_text("val_0.JPEG\n"),
        "not a table of files and wnids",
    ),
    "empty table": (lambda root: table_of(root).write_text(""), "not a table"),
    "foreign class": (
        lambda root: table_of(root).write_text("val_0.JPEG\tn99999999\t0\t0\t1\t1\n"),
        "none of the classes",
    ),
    "path out of it": (
        lambda root: table_of(root).write_text("../../x.JPEG\tn01443537\t0\t0\t1\t1\n"),
        "is no file name",
    ),
    "image missing": (
        lambda root: (root / "tiny-imagenet-200/val/images/val_2.JPEG").unlink(),
        "val_2.JPEG: is in val_annotations.txt, but not here",
    ),
    "a class fewer": (
        lambda root: (root / "tiny-imagenet-200/wnids.txt").write_text("n01443537\n"),
        "1 classes, tiny-imagenet has 3",
    ),
    "a folder fewer": (
        lambda root: (root / "tiny-imagenet-200/train/n01443537").rename(root / "away"),
        "2 class folders, tiny-imagenet has 3",
    ),
    "no val": (
        lambda root: (root / "tiny-imagenet-200/val").rename(root / "away"),
        "no folder val",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_layouts_are_one_line_with_the_tree(case: str, root: Path) -> None:
    spoil, told = WRONG[case]
    spoil(root)

    def load() -> None:
        for split in BOTH:
            load_split(SPEC, path=root, split=split)

    def check() -> None:
        check_dataset(SPEC, root, BOTH)

    for look in (check, load):
        with pytest.raises(UserError, match=told) as caught:
            look()
        (line,) = caught.value.lines()
        assert "expected PATH/tiny-imagenet-200/{wnids.txt,train/<wnid>/images/*.JPEG" in line


def test_another_size_names_the_file(root: Path, encode_image: Callable[..., bytes]) -> None:
    file = root / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG"
    file.write_bytes(encode_image(np.zeros((224, 224, 3), np.uint8), "JPEG"))
    with pytest.raises(UserError, match=r"val_3\.JPEG: the image is 224x224 pixels"):
        load_split(SPEC, path=root, split="test")
