from __future__ import annotations

import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from kdci.data.datasets.cifar_batches import read_batch
from kdci.errors import IntegrityError, StorageError

DATA = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
LABELS = [3, 1, 4, 1, 5, 9]


def short(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """The published files' opcodes, written out: Python 2, protocol 2, numpy 1.x."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short("b") + b"\x87R"
        b"(K\x01" + b"J" + struct.pack("<i", len(data)) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\n" + short("u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + short("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + short("leptodactylus_s_000004.png") + b"e"
    return (
        b"\x80\x02}("
        + short("batch_label")
        + short("training batch 1 of 5")
        + short("labels")
        + numbers
        + short("data")
        + array
        + short("filenames")
        + names
        + b"u."
    )


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize(
    "content",
    [
        python2_batch(DATA, LABELS),
        {"data": DATA, "labels": LABELS},
        {b"data": DATA, b"labels": LABELS, b"batch_label": b"testing batch 1 of 1"},
        {"data": np.asfortranarray(DATA), "labels": LABELS},
    ],
    ids=["published", "text keys", "bytes keys", "fortran order"],
)
def test_pixels_are_planes_of_red_green_blue(content: object, tmp_path: Path) -> None:
    images, labels = read_batch(write(tmp_path / "data_batch_1", content))
    assert images.shape == (6, 3, 32, 32)
    assert labels.tolist() == LABELS
    for channel, row, column in ((0, 0, 1), (1, 5, 0), (2, 31, 31)):
        pixel = DATA[2, channel * 1024 + row * 32 + column]
        assert images[2, channel, row, column] == pixel


class Touch:
    """Pickled, it touches a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


class Evaluate:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return eval, (self.code,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused_and_nothing_is_called(
    protocol: int, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    for index, evil in enumerate((Touch(canary), Evaluate(f"open({str(canary)!r}, 'w')"))):
        pickle.loads(pickle.dumps(evil, protocol))
        assert canary.exists(), "the attack itself must work, else this proves nothing"
        canary.unlink()
        content = {"data": DATA, "labels": LABELS, "filenames": evil}
        file = write(tmp_path / f"batch{index}", content, protocol)
        with pytest.raises(IntegrityError, match="refused") as refusal:
            read_batch(file)
        assert not canary.exists()
        assert str(file) in str(refusal.value)
        assert len(refusal.value.lines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aU\x05rot13\x86R.",
        b"\x80\x02cnumpy\nndarray\nK\x05\x85\x85R.",
        b"Pid\n.",
        b"",
        b"\x80\x02}",
        python2_batch(DATA, LABELS)[:-4000],
        b"\x80\x02" + b"(" * 100_000,
        # What names refer to stays as it is.
        b"\x80\x02cnumpy\ndtype\nN}X\x04\x00\x00\x00callK\x01s\x86b.",
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
    ],
)
def test_other_names_and_damage_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        read_batch(write(tmp_path / "data_batch_1", content))


KEY_OF_TUPLES = b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."
"""A dict whose one key is 200,000 tuples deep: its hash ends the process."""
WIDE_KEY = b"\x80\x02})" + b"q\x01h\x01\x86" * 60 + b"Ns."
"""A key of 2^60 tuples, in 60 of them: its hash does not end at all."""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (KEY_OF_TUPLES, "unhashable"),
        (WIDE_KEY, "unhashable"),
        (b"\x80\x02}()" + b"\x85" * 9 + b"NK\x01Nu.", "unhashable"),
        (b"\x80\x02(K\x01N)\x85Nd.", "unhashable"),
        (b"\x80\x02)\x85q\x010}h\x01Ns.", "unhashable"),
        (b"\x80\x04\x8f()\x85\x90.", "143"),
        (b"\x80\x02}r" + struct.pack("<I", 2**27) + b".", "refused"),
        (b"\x80\x02}p134217728\n.", "refused"),
    ],
    ids=range(8),
)
def test_what_would_take_memory_or_end_the_process_is_refused(
    content: bytes, told: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "data_batch_1", content)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match=told):
            read_batch(file)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("step", [b"N0", b"N"])
def test_endless_steps_are_refused(step: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "data_batch_1", b"\x80\x02" + step * 4_100_000 + b"}.")
    with pytest.raises(IntegrityError, match="more than a batch"):
        read_batch(file)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    names = [f"{number}.png".encode() for number in range(6)]
    content = {b"data": DATA, b"labels": LABELS, b"filenames": names, "more": (1, (2, names))}
    images, labels = read_batch(write(tmp_path / "data_batch_1", content, protocol))
    assert np.array_equal(images.numpy().reshape(6, -1), DATA)
    assert labels.tolist() == LABELS


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"labels": LABELS},
        {"data": DATA},
        {"data": DATA.tolist(), "labels": LABELS},
        {"data": DATA[:, :100], "labels": LABELS},
        {"data": DATA.astype(np.float32), "labels": LABELS},
        {"data": DATA.reshape(6, 3, 32, 32), "labels": LABELS},
        {"data": DATA, "labels": LABELS[:-1]},
        {"data": DATA, "labels": ["a"] * 6},
        {"data": DATA, "labels": [2**70] * 6},
        OrderedDict(data=DATA, labels=LABELS),
    ],
)
def test_plain_data_of_another_kind_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        read_batch(write(tmp_path / "data_batch_1", content))


def test_numpy_s_own_dtypes_are_left_alone(tmp_path: Path) -> None:
    read_batch(write(tmp_path / "data_batch_1", python2_batch(DATA, LABELS)))
    assert np.dtype("u1") is np.dtype(np.uint8)
    assert np.dtype(np.uint8).itemsize == 1


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_batch(tmp_path / "data_batch_1")
