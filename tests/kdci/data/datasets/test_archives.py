from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kdci.data.datasets.archives import unpack_tar_gz
from kdci.errors import IntegrityError

MAX = 2**20


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def write(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def unpack(archive: Path, into: Path) -> None:
    into.mkdir()
    unpack_tar_gz(archive, into, folder="data", max_bytes=MAX)


def around(root: Path, into: Path) -> dict[str, bytes | None]:
    """Return all that is there beside the folder that is unpacked to."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if not path.is_relative_to(into)
    }


def test_plain_files_and_folders(tmp_path: Path) -> None:
    entries = [
        (entry("data", tarfile.DIRTYPE), b""),
        (entry("data/a"), b"first"),
        (entry("data/below/b"), b"second"),
    ]
    unpack(write(tmp_path / "a.tar.gz", *entries), tmp_path / "out")
    assert (tmp_path / "out/data/a").read_bytes() == b"first"
    assert (tmp_path / "out/data/below/b").read_bytes() == b"second"


HOSTILE: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "parent": [(entry("../canary"), b"x")],
    "parent within": [(entry("data/../../canary"), b"x")],
    "other folder": [(entry("canary"), b"x")],
    "absolute": [(entry("/tmp/kdci-canary"), b"x")],
    "symlink": [(entry("data/link", tarfile.SYMTYPE, "../../canary"), b"")],
    "folder link, then through it": [
        (entry("data/link", tarfile.SYMTYPE, "/"), b""),
        (entry("data/link/canary"), b"x"),
    ],
    "hardlink": [(entry("data/link", tarfile.LNKTYPE, "../canary"), b"")],
    "device": [(entry("data/null", tarfile.CHRTYPE), b"")],
    "block device": [(entry("data/disk", tarfile.BLKTYPE), b"")],
    "pipe": [(entry("data/pipe", tarfile.FIFOTYPE), b"")],
    "bomb": [(entry("data/zeros"), bytes(MAX + 1))],
    "many small": [(entry(f"data/{k}"), b"") for k in range(65)],
    "bomb in parts": [(entry(f"data/{k}"), bytes(MAX // 8)) for k in range(9)],
    "after a good one": [(entry("data/good"), b"x"), (entry("../canary"), b"x")],
    "dotted": [(entry("data//../canary"), b"x")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing_outside(case: str, tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", *HOSTILE[case])
    (tmp_path / "canary").write_bytes(b"untouched")
    into = tmp_path / "out"
    before = around(tmp_path, into)
    with pytest.raises(IntegrityError) as caught:
        unpack(archive, into)
    assert caught.value.exit_code == 3 and len(caught.value.lines()) == 1
    assert around(tmp_path, into) == before
    assert not Path("/tmp/kdci-canary").exists()
    assert not [path for path in into.rglob("*") if path.is_symlink()]


def test_a_claimed_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A header that claims gigabytes, of which none follow, and one that pax text fills."""
    for name, header in (
        ("size", entry("data/zeros", size=2**40).tobuf()),
        ("pax", entry("data/pax", tarfile.XHDTYPE, size=2**33).tobuf()),
    ):
        archive = tmp_path / f"{name}.tar.gz"
        archive.write_bytes(gzip.compress(header + bytes(2 * MAX)))
        with pytest.raises(IntegrityError):
            unpack(archive, tmp_path / name)
        total = sum(file.stat().st_size for file in (tmp_path / name).rglob("*") if file.is_file())
        assert total <= MAX


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"text",
        lambda data: data[:60],
        lambda data: data[:-40],
        lambda data: data[:40] + bytes(20) + data[60:],
    ],
    ids=["empty", "text", "start", "cut", "altered"],
)
def test_damage(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = bytes(range(256)) * 900
    archive = write(tmp_path / "a.tar.gz", (entry("data/a"), content))
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(IntegrityError):
        unpack(archive, tmp_path / "out")
