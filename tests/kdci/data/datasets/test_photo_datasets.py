from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from kdci.config.catalog import DATASETS, DatasetSpec
from kdci.config.data import DataFacts
from kdci.data.datasets.labelled import Split
from kdci.data.datasets.loading import check_dataset, load_split
from kdci.data.files import image_files
from kdci.data.files.image_files import ImageFiles
from kdci.errors import IntegrityError, KdciError, UserError

Folders = Callable[..., Path]
Make = Callable[..., Path]
BOTH: list[Split] = ["train", "test"]
SPLITS: list[tuple[Split, str]] = [("train", "train"), ("test", "val")]
IMAGENET = replace(DATASETS["imagenet"], num_classes=3)


def spec_of(num_classes: int = 3, **facts: object) -> DatasetSpec:
    """Return the spec of a custom dataset from its params block."""
    whole = {"num_classes": num_classes, "image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
    return DataFacts.model_validate({**whole, **facts}).spec


CUSTOM, NAMED = spec_of(), spec_of(class_names=["dog", "cat", "ant"])


def photo(seed: int, height: int = 300, width: int = 400) -> np.ndarray:
    """Smooth, so that JPEG and resizing keep it what it is."""
    rows, columns = np.mgrid[:height, :width] / 50
    planes = [127 + 120 * np.sin(rows + seed + p) * np.cos(columns - p) for p in range(3)]
    return np.stack(planes, axis=2).astype(np.uint8)


@pytest.fixture
def imagenet(tmp_path: Path, make_folders: Folders) -> Path:
    root = tmp_path / "imagenet"
    wnids = ["n02119789", "n01440764", "n01443537"]
    for split, shift in (("train", 0), ("val", 50)):
        classes = {
            wnid: [photo(10 * k + i + shift, 300 + 40 * i, 400 - 60 * k) for i in range(2)]
            for k, wnid in enumerate(wnids)
        }
        make_folders(root / split, classes, kind="JPEG")
    return root


@pytest.fixture
def custom(tmp_path: Path, make_folders: Folders) -> Path:
    root = tmp_path / "own"
    for split in ("train", "test"):
        classes = {name: [photo(k, 9 + k, 12)] for k, name in enumerate(("ant", "cat", "dog"))}
        make_folders(root / split, classes)
    return root


@pytest.mark.parametrize("in_memory", [True, False])
def test_imagenet_is_what_torchvision_evaluates_on(
    in_memory: bool, imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images to a level (rounding), labels and files exactly."""
    if not in_memory:
        monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", 0)
    check_dataset(IMAGENET, imagenet, BOTH)
    transform = T.Compose([T.Resize(256), T.CenterCrop(224), T.PILToTensor()])
    for split, folder in SPLITS:
        theirs = ImageFolder(str(imagenet / folder), transform)
        ours = load_split(IMAGENET, path=imagenet, split=split)
        assert isinstance(ours.images, ImageFiles) is not in_memory
        assert ours.labels.tolist() == theirs.targets == [0, 0, 1, 1, 2, 2]
        expected = torch.stack([image for image, _ in theirs])
        assert (ours.images[:].int() - expected.int()).abs().max() <= 1


def test_imagenets_unlabelled_test_folder_is_not_its_test_split(imagenet: Path) -> None:
    (imagenet / "test").mkdir()
    (imagenet / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"no matter")
    assert len(load_split(IMAGENET, path=imagenet.parent, split="test")) == 6


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_a_custom_folder_whatever_its_test_split_is_called(name: str, custom: Path) -> None:
    (custom / "test").rename(custom / name)
    check_dataset(CUSTOM, custom, BOTH)
    data = load_split(CUSTOM, path=custom, split="test")
    assert data.images.shape == (3, 3, 8, 8)
    assert data.labels.tolist() == [0, 1, 2]


def test_labels_follow_stated_class_names_and_else_the_sorted_folders(custom: Path) -> None:
    plain = load_split(CUSTOM, path=custom, split="train")
    named = load_split(NAMED, path=custom, split="train")
    assert plain.labels.tolist() == named.labels.tolist() == [0, 1, 2]
    assert torch.equal(named.images[0], plain.images[2])  # dog
    assert torch.equal(named.images[2], plain.images[0])  # ant


def test_numbers_are_sorted_as_imagefolder_sorts_them(
    tmp_path: Path, make_folders: Folders
) -> None:
    classes = {str(k): [np.full((8, 8, 3), 20 * k, np.uint8)] for k in range(12)}
    make_folders(tmp_path / "train", classes)
    spec = spec_of(12)
    data = load_split(spec, path=tmp_path, split="train")
    theirs = ImageFolder(str(tmp_path / "train"))
    assert theirs.classes[:4] == ["0", "1", "10", "11"]
    assert (data.images[:, 0, 0, 0] // 20).tolist() == [int(name) for name in theirs.classes]


def test_stated_numbers_are_names_like_any_other(tmp_path: Path, make_folders: Folders) -> None:
    """As numbers, not as text: whoever states 0 to 11 says that label 2 is folder 2."""
    classes = {str(k): [np.full((8, 8, 3), 20 * k, np.uint8)] for k in range(12)}
    make_folders(tmp_path / "train", classes)
    data = load_split(
        spec_of(12, class_names=[str(k) for k in range(12)]), path=tmp_path, split="train"
    )
    assert (data.images[:, 0, 0, 0] // 20).tolist() == data.labels.tolist() == [*range(12)]


def test_linked_folders_are_entered_as_by_imagefolder_but_not_in_circles(
    custom: Path, make_folders: Folders
) -> None:
    more = make_folders(custom.parent / "elsewhere", {"cats": [photo(9, 10, 10)] * 2})
    (custom / "train" / "cat" / "more").symlink_to(more / "cats")
    theirs = ImageFolder(str(custom / "train"))
    assert load_split(CUSTOM, path=custom, split="train").labels.tolist() == theirs.targets
    assert theirs.targets == [0, 1, 1, 1, 2]
    (more / "cats" / "back").symlink_to(custom / "train" / "cat")
    (more / "cats" / "self").symlink_to(more / "cats")
    assert load_split(CUSTOM, path=custom, split="train").labels.tolist() == theirs.targets


def test_hidden_things_nested_folders_and_other_files_are_as_to_imagefolder(
    custom: Path, make_folders: Folders
) -> None:
    make_folders(custom / "train", {"cat": [photo(9, 10, 10)]}, below="more/of/them")
    (custom / "train" / ".cache").mkdir()
    (custom / "train" / "cat" / "notes.txt").write_text("a cat")
    (custom / "train" / "cat" / "._cat_0.png").write_bytes(b"macOS leaves these")
    assert load_split(CUSTOM, path=custom, split="train").labels.tolist() == [0, 1, 1, 2]


def test_parquet_of_any_size_is_cut_square(
    tmp_path: Path, encode_image: Callable[..., bytes], make_parquet: Make
) -> None:
    blobs = [encode_image(np.full((9, 20 + k, 3), 40 * k, np.uint8)) for k in range(4)]
    make_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", blobs[:3], label=[2, 0, 1])
    make_parquet(tmp_path / "data" / "validation.parquet", blobs[3:], label=[1])
    check_dataset(CUSTOM, tmp_path, BOTH)
    train, test = (load_split(CUSTOM, path=tmp_path, split=split) for split in BOTH)
    assert train.labels.tolist() == [2, 0, 1]
    assert train.images[:, 1, 4, 4].tolist() == [0, 40, 80]
    assert test.images.shape == (1, 3, 8, 8)


def with_class_names(file: Path, names: list[str]) -> None:
    """State the classes in the file as Hugging Face's library does."""
    features = {"label": {"names": names, "_type": "ClassLabel"}, "img": {"_type": "Image"}}
    table = pq.read_table(file)
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, file)


def test_classes_that_parquet_states_are_compared(
    tmp_path: Path, encode_image: Callable[..., bytes], make_parquet: Make
) -> None:
    file = tmp_path / "train-00000-of-00001.parquet"
    make_parquet(file, [encode_image(photo(0, 8, 8))], label=[0])
    with_class_names(file, ["dog", "cat"])
    with pytest.raises(UserError, match="2 classes, custom has 3"):
        check_dataset(CUSTOM, tmp_path, ["train"])
    with_class_names(file, ["dog", "ant", "cat"])
    check_dataset(CUSTOM, tmp_path, ["train"])
    with pytest.raises(UserError, match="label 1 is ant, but data.facts.class_names has cat"):
        load_split(NAMED, path=tmp_path, split="train")


def test_stated_numbers_are_compared_with_parquets_names(
    tmp_path: Path, encode_image: Callable[..., bytes], make_parquet: Make
) -> None:
    file = tmp_path / "train-00000-of-00001.parquet"
    make_parquet(file, [encode_image(photo(0, 8, 8))], label=[0])
    with_class_names(file, ["0", "2", "1"])
    check_dataset(CUSTOM, tmp_path, ["train"])
    with pytest.raises(UserError, match=r"label 1 is 2, but data.facts.class_names has 1"):
        check_dataset(spec_of(class_names=["0", "1", "2"]), tmp_path, ["train"])


def test_parquet_beyond_the_memory_is_refused(
    tmp_path: Path, encode_image: Callable[..., bytes], make_parquet: Make
) -> None:
    make_parquet(tmp_path / "train.parquet", [encode_image(photo(0, 8, 8))], label=[0])
    spec = replace(CUSTOM, image_size=10**7)
    with pytest.raises(UserError, match="GiB of memory"):
        load_split(spec, path=tmp_path, split="train")


def without(*names: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for name in names:
            shutil.rmtree(root / name)

    return remove


def flatten(root: Path) -> None:
    for file in [*(root / "train").rglob("*.png")]:
        file.rename(root / "train" / file.name)
    for folder in [*(root / "train").iterdir()]:
        if folder.is_dir():
            folder.rmdir()


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no train split": (without("train"), "no folder train"),
    "no test split": (without("test"), "no folder test or val"),
    "nothing": (without("train", "test"), "no folder train"),
    "no folders of classes": (flatten, "without folders of classes"),
    "a class fewer": (without("test/cat"), "2 class folders, custom has 3"),
    "one class": (without("train/ant", "train/cat"), "1 class folders, custom has 3"),
    "a class more": (
        lambda root: (root / "train" / "eel").mkdir(),
        "4 class folders, custom has 3",
    ),
    "an empty class": (
        lambda root: next((root / "train" / "cat").iterdir()).unlink(),
        "cat: no images of this class",
    ),
    "another format": (
        lambda root: (root / "train" / "cat" / "x.tif").write_bytes(b"II*"),
        "x.tif: is of a format that is not read",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_layouts_are_one_line_before_and_while_reading(case: str, custom: Path) -> None:
    spoil, told = WRONG[case]
    spoil(custom)

    def load() -> None:
        for split in BOTH:
            load_split(CUSTOM, path=custom, split=split)

    def check() -> None:
        check_dataset(CUSTOM, custom, BOTH)

    for look in (check, load):
        with pytest.raises(UserError, match=told) as caught:
            look()
        (line,) = caught.value.lines()
        assert str(custom) in line
        assert "expected" in line or "convert" in line
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", [None, Path("absent")])
def test_no_folder_at_all(path: Path | None) -> None:
    for spec in (IMAGENET, CUSTOM):
        with pytest.raises(UserError, match=r"expected PATH/\{train,"):
            check_dataset(spec, path, ["train"])


@pytest.mark.parametrize(
    "name", ["-rf", "a b", "x" * 65, "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "%2e%2e\n", "_"]
)
def test_class_folders_have_plain_names(name: str, custom: Path) -> None:
    (custom / "train" / "cat").rename(custom / "train" / name)
    with pytest.raises(UserError, match="unusual name") as caught:
        check_dataset(CUSTOM, custom, ["train"])
    assert str(caught.value).isascii() and len(caught.value.lines()) == 1


def test_folders_other_than_the_stated_classes(custom: Path) -> None:
    (custom / "train" / "cat").rename(custom / "train" / "bee")
    check_dataset(CUSTOM, custom, ["train"])
    with pytest.raises(UserError, match="class folder bee is none of data.facts.class_names"):
        check_dataset(NAMED, custom, ["train"])


def test_a_damaged_image_ends_it_with_its_name(custom: Path) -> None:
    file = next((custom / "train" / "ant").iterdir())
    file.write_bytes(file.read_bytes()[:70])
    for look in (
        check_dataset,
        lambda spec, path, splits: load_split(spec, path=path, split=splits[0]),
    ):
        with pytest.raises(IntegrityError, match=file.name) as caught:
            look(CUSTOM, custom, ["train"])
    found: KdciError = caught.value
    assert found.exit_code == 3
