from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from contextlib import AbstractContextManager
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from typing import IO
from urllib.error import URLError

import numpy as np
import pytest

from kdci.config.catalog import DATASETS
from kdci.data.datasets.download import SOURCES, Opener, Source, download, open_https
from kdci.data.datasets.loading import load_split
from kdci.errors import IntegrityError, KdciError, StorageError, UserError


class Site:
    """Sends these bytes to whoever asks, and remembers what was asked for."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked, self.sent = content, list[str](), 0

    def __call__(self, url: str) -> AbstractContextManager[IO[bytes]]:
        self.asked.append(url)
        site = self

        class Response(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size)
                site.sent += len(data)
                return data

        return Response(self.content)


def cifar100_archive(*, without: str = "") -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        folder = tarfile.TarInfo("cifar-100-python")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("meta", "test", "train", "file.txt~"):
            data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            content = pickle.dumps({"data": data, "fine_labels": [1, 2, 3, 99]}, 2)
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            if name != without:
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def source_of(content: bytes) -> Source:
    digest = hashlib.sha256(content).hexdigest()
    return replace(SOURCES["cifar100"], sha256=digest, num_bytes=len(content))


def test_what_is_fetched_can_be_read(tmp_path: Path) -> None:
    content = cifar100_archive()
    site = Site(content)
    place = download(source_of(content), tmp_path / "new" / "data", opener=site)
    assert place == tmp_path / "new" / "data" / "cifar-100-python"
    assert site.asked == ["https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"]
    data = load_split(DATASETS["cifar100"], path=place.parent, split="train")
    assert data.labels.tolist() == [1, 2, 3, 99]
    assert [file.name for file in place.parent.iterdir()] == ["cifar-100-python"]


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    content = cifar100_archive()
    site = Site(content)
    for _ in range(2):
        download(source_of(content), tmp_path, opener=site)
    assert len(site.asked) == 1
    (tmp_path / "cifar-100-python" / "test").unlink()
    with pytest.raises(UserError, match="test missing"):
        download(source_of(content), tmp_path, opener=site)
    assert len(site.asked) == 1


def refused(source: Source, path: Path, opener: Opener) -> KdciError:
    """Return the error of a download that leaves nothing behind."""
    with pytest.raises(KdciError) as caught:
        download(source, path, opener=opener)
    assert not path.exists() or [*path.iterdir()] == []
    assert len(caught.value.lines()) == 1
    return caught.value


@pytest.mark.parametrize("at", [0, 100, -1])
def test_one_altered_byte_is_found_before_anything_is_unpacked(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = cifar100_archive()
    altered = bytearray(content)
    altered[at] ^= 1

    def unpack(*_: object, **__: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr("shutil.unpack_archive", unpack)
    error = refused(source_of(content), tmp_path / "data", Site(bytes(altered)))
    assert isinstance(error, IntegrityError) and error.exit_code == 3


def test_no_more_is_taken_than_is_published(tmp_path: Path) -> None:
    content = cifar100_archive()
    for sent in (content[:-1], content + b"x", content + bytes(2**24)):
        site = Site(sent)
        error = refused(source_of(content), tmp_path / "data", site)
        assert isinstance(error, IntegrityError)
        assert site.sent <= len(content) + 1


def test_a_pinned_archive_that_lacks_files_or_holds_more(tmp_path: Path) -> None:
    content = cifar100_archive(without="test")
    error = refused(source_of(content), tmp_path / "a", Site(content))
    assert isinstance(error, IntegrityError) and "test missing" in str(error)
    content = cifar100_archive()
    other = replace(source_of(content), batches=SOURCES["cifar10"].batches)
    assert refused(other, tmp_path / "b", Site(content)).exit_code == 3


class Falling(io.BytesIO):
    """A connection that breaks while it is read."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [URLError("Name or service not known"), TimeoutError("timed out"), IncompleteRead(b"", 9)],
    ids=lambda error: type(error).__name__,
)
def test_a_site_that_does_not_answer(error: Exception, tmp_path: Path) -> None:
    def unknown(url: str) -> AbstractContextManager[IO[bytes]]:
        raise error

    for opener in (unknown, lambda url: Falling(error)):
        found = refused(SOURCES["cifar10"], tmp_path / "data", opener)
        assert isinstance(found, StorageError) and "can not be fetched" in str(found)


@pytest.mark.parametrize("url", ["http://a.example/x", "file:///etc/passwd", "ftp://a.example/x"])
def test_only_https_is_opened(url: str, tmp_path: Path) -> None:
    site = Site(b"")
    source = replace(SOURCES["cifar10"], url=url)
    assert isinstance(refused(source, tmp_path / "data", site), UserError)
    assert site.asked == []
    with pytest.raises(URLError, match="unknown url type"):  # where a redirection leads to it
        open_https(url)


def test_the_published_archives() -> None:
    """Their names are torchvision's; the hashes are pinned in several public places."""
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, theirs in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        source = SOURCES[name]
        assert source.url == theirs.url and source.folder == theirs.base_folder
        listed = {file for file, _ in [*theirs.train_list, *theirs.test_list]}
        assert {*source.batches.names} == listed
        assert len(bytes.fromhex(source.sha256)) == 32
