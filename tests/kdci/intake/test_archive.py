"""torch's archive looked over: what torch.save writes passes, everything else does not."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from kdci.errors import IntegrityError, KdciError
from kdci.intake import archive as module
from kdci.intake.archive import check_archive, container_of, plain_archive
from kdci.intake.reading import read_tensors


def refusal(data: bytes) -> str:
    with pytest.raises(IntegrityError) as caught:
        check_archive(data, "x.pt")
    (line,) = caught.value.lines()
    assert line.startswith("kdci: error: x.pt: ")
    return line


def test_what_torch_saves_passes(saved, rezipped, state) -> None:
    check_archive(saved(state), "x.pt")
    check_archive(rezipped(saved(state)), "x.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_members(saved, rezipped, state, method) -> None:
    assert "is compressed" in refusal(rezipped(saved(state), method=method))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("archive/constants.pkl", b"", "TorchScript"),
        ("archive/code/__torch__.py", b"", "TorchScript"),
        ("other/data/0", b"", "no archive of torch.save"),
        ("archive/../../etc/x", b"", "has a name"),
        ("/etc/x", b"", "has a name"),
        ("top", b"", "has a name"),
        ("archive/" + "a" * 300, b"", "has a name"),
        ("archive/\x1b[31mred\n/../x", b"", "has a name"),
    ],
)
def test_members_that_torch_never_saves(saved, rezipped, state, name, content, told) -> None:
    line = refusal(rezipped(saved(state), changes={name: content}))
    assert told in line and line.isprintable()


def test_no_pickle_at_all() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as empty:
        empty.writestr("archive/data/0", b"1")
    assert "no archive of torch.save" in refusal(out.getvalue())


def test_caps(saved, state, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(state)
    monkeypatch.setattr(module, "MAX_PICKLE_BYTES", 10)
    assert "pickle has" in refusal(data)
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    assert "members, at most 3" in refusal(data)


@pytest.mark.parametrize("cut", [1, 30, 500])
def test_cut_off(saved, state, cut) -> None:
    assert "cut off" in refusal(saved(state)[:-cut])


def test_something_after_the_end(saved, state) -> None:
    """Another reader might take another directory."""
    assert "cut off" in refusal(saved(state) + b"PK\x05\x06" + bytes(17))


def test_a_copy_has_the_same_members(saved, state) -> None:
    data = saved(state)
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(io.BytesIO(plain_archive(data, "x.pt"))) as new,
    ):
        assert old.namelist() == new.namelist()
        assert all(old.read(name) == new.read(name) for name in old.namelist())


def test_a_tensor_marked_as_a_folder(saved, state) -> None:
    """torch leaves such a member out and shows memory that was never written."""
    data = bytearray(saved(state))
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    data[entry + 38] |= 0x10
    found = read_tensors(bytes(data), "x.pt").tensors
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_no_flipped_bit_changes_a_value(saved, state) -> None:
    """torch itself checks no checksum: half of these would go unnoticed."""
    data = saved(state)
    refused = 0
    for place in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        try:
            found = read_tensors(bytes(flipped), "x.pt").tensors
        except KdciError as error:
            refused += 1
            assert len(error.lines()) == 1
        else:
            assert all(torch.equal(found[name], value) for name, value in state.items())
    assert refused > 50


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"\x80\x02}q\x00.", "bare pickle"),
        (b"\x1f\x8b\x08\x00", "is damaged"),
        (b"<html>Not found</html>", "is damaged"),
        (b"\xff" * 7 + b"\x7f{", "is damaged"),
    ],
)
def test_what_is_no_checkpoint(data, told) -> None:
    with pytest.raises(IntegrityError, match=told):
        container_of(data, "x.pt")


def test_formats(saved, state) -> None:
    from safetensors.torch import save

    assert container_of(saved(state), "x") == "torch"
    assert container_of(save(state), "x") == "safetensors"
    with pytest.raises(IntegrityError, match=r"before 1\.6.*weights_only=True"):
        container_of(saved(state, legacy=True), "x")
