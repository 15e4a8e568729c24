from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdci.errors import IntegrityError, StorageError, UserError
from kdci.store.artifacts import (
    CARD,
    Artifact,
    new_artifact,
    open_artifact,
    parse_tensors,
    read_card,
    remove_leftovers,
    replace_file,
    save_tensors,
)
from kdci.store.hashing import hash_json

TENSORS = {"weight": torch.arange(60.0).view(6, 10), "steps": torch.tensor(3)}


def write(path: Path, *, seed: int = 0, size: int = 10) -> None:
    with new_artifact(path, kind="teacher", card={"facts": {"seed": seed}}) as draft:
        draft.save_tensors("model.safetensors", {**TENSORS, "noise": torch.full((size,), seed)})
        draft.save_json("rows.json", [{"seed": seed}])


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


class TestRoundTrip:
    def test_files_and_facts_come_back(self, tmp_path: Path) -> None:
        with new_artifact(tmp_path / "a", kind="teacher", card={"seeds": {"seed": 1}}) as draft:
            draft.save_tensors("model.safetensors", TENSORS)
            draft.save_json("rows.json", [{"x": 1 / 3}])
            draft.card["facts"] = {"accuracy": 97.25}
        found = open_artifact(tmp_path / "a", kind="teacher")
        tensors = found.tensors("model.safetensors")
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
        assert found.json("rows.json") == [{"x": 1 / 3}]
        assert found.facts == {"accuracy": 97.25} and found.card["seeds"] == {"seed": 1}
        assert leftovers(tmp_path) == []

    def test_views_and_channels_last_weights_are_saved_as_they_read(self, tmp_path: Path) -> None:
        whole = torch.arange(48.0).view(2, 3, 2, 4)
        tensors = {
            "channels_last": whole.to(memory_format=torch.channels_last),
            "transposed": whole[0, 0].T,
            "part": whole[1],
            "graded": whole.clone().requires_grad_(),
        }
        save_tensors(tmp_path / "t.safetensors", tensors)
        back = load_file(tmp_path / "t.safetensors")
        for name, tensor in tensors.items():
            assert torch.equal(back[name], tensor.detach())

    def test_equal_results_have_equal_content_whatever_the_card_says(self, tmp_path: Path) -> None:
        for name, facts in (("a", {"x": 1}), ("b", {"x": 2})):
            with new_artifact(tmp_path / name, kind="pool", card={"facts": facts}) as draft:
                draft.save_tensors("t.safetensors", TENSORS)
        write(tmp_path / "c")
        a, b = (open_artifact(tmp_path / name, kind="pool") for name in "ab")
        assert a.content == b.content and a.card["card_sha256"] != b.card["card_sha256"]
        assert a.content != open_artifact(tmp_path / "c", kind="teacher").content

    def test_same_input_twice_same_bytes(self, tmp_path: Path) -> None:
        for name in "ab":
            write(tmp_path / name)
        names = sorted(p.name for p in (tmp_path / "a").iterdir())
        assert names == ["card.json", "model.safetensors", "rows.json"]
        for name in names:
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_card_keys_that_are_numbers_verify(self, tmp_path: Path) -> None:
        """JSON turns them into strings, which sort in another order."""
        with new_artifact(tmp_path / "a", kind="pool", card={"facts": {2: "b", 10: "j"}}):
            pass
        assert open_artifact(tmp_path / "a", kind="pool").facts == {"2": "b", "10": "j"}

    def test_a_file_that_is_not_on_the_card_is_not_read(self, tmp_path: Path) -> None:
        write(tmp_path / "a")
        save_tensors(tmp_path / "a" / "extra.safetensors", TENSORS)
        found = open_artifact(tmp_path / "a", kind="teacher")
        with pytest.raises(IntegrityError, match=r"holds no extra\.safetensors"):
            found.tensors("extra.safetensors")


class TestNothingOrAll:
    def test_an_error_leaves_the_old_one_and_no_temporary(self, tmp_path: Path) -> None:
        write(tmp_path / "a", seed=1)
        with (
            pytest.raises(KeyError),
            new_artifact(tmp_path / "a", kind="teacher", card={}) as draft,
        ):
            draft.save_tensors("model.safetensors", TENSORS)
            raise KeyError("stage")
        assert open_artifact(tmp_path / "a", kind="teacher").facts == {"seed": 1}
        assert leftovers(tmp_path) == []

    def test_not_there_before_the_block_ends(self, tmp_path: Path) -> None:
        with new_artifact(tmp_path / "a", kind="teacher", card={}) as draft:
            draft.save_json("rows.json", [])
            assert not (tmp_path / "a").exists()
        assert (tmp_path / "a").is_dir()

    def test_replacing_drops_files_of_the_old_one(self, tmp_path: Path) -> None:
        write(tmp_path / "a", seed=1)
        with new_artifact(tmp_path / "a", kind="pool", card={"facts": {}}) as draft:
            draft.save_json("other.json", 1)
        assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["card.json", "other.json"]

    def test_values_json_can_not_hold_are_refused(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ValueError, match="not JSON compliant"),
            new_artifact(tmp_path / "a", kind="pool", card={"facts": {"x": float("nan")}}),
        ):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_leftovers_of_a_killed_writer_are_removed_and_no_more(self, tmp_path: Path) -> None:
        write(tmp_path / "a")
        for name in (".a.x1.tmp", ".a.old.tmp", ".ab.x1.tmp", "a.tmp"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").touch()
        remove_leftovers(tmp_path / "a")
        remove_leftovers(tmp_path / "nowhere" / "a")
        assert sorted(p.name for p in tmp_path.iterdir()) == [".ab.x1.tmp", "a", "a.tmp"]

    def test_readable_by_others_who_share_the_project(self, tmp_path: Path) -> None:
        write(tmp_path / "a")
        replace_file(tmp_path / "file", b"x")
        assert (tmp_path / "a").stat().st_mode & 0o055 == 0o055
        assert (tmp_path / "file").stat().st_mode & 0o044 == 0o044


READER = """
import sys, time
from pathlib import Path
from kdci.store.artifacts import open_artifact
from kdci.errors import IntegrityError, UserError
path, stop = Path(sys.argv[1]), Path(sys.argv[2])
whole = absent = 0
bad = []
stop.with_name("ready").touch()
while not stop.exists():
    try:
        found = open_artifact(path, kind="teacher")
        whole += 1
    except UserError:
        absent += 1
    except IntegrityError as error:
        bad.append(str(error))
print(whole, absent, len(bad), *bad[:1])
"""


class TestReaderBesideAWriter:
    def wait_for(self, file: Path) -> None:
        for _ in range(600):
            if file.exists():
                return
            time.sleep(0.05)
        raise TimeoutError(file)

    def test_a_reader_never_sees_a_mixture(self, tmp_path: Path) -> None:
        """R4: 100 replacements under the eyes of another process."""
        artifact, stop = tmp_path / "a", tmp_path / "stop"
        write(artifact)
        command = [sys.executable, "-c", READER, str(artifact), str(stop)]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            self.wait_for(tmp_path / "ready")
            for seed in range(100):
                write(artifact, seed=seed, size=20_000)
        finally:
            stop.touch()
            output, _ = reader.communicate(timeout=60)
        whole, _absent, bad, *first = output.split(maxsplit=3)
        assert int(whole) > 10
        assert int(bad) == 0, first

    def test_a_reader_of_a_replaced_file_sees_old_or_new(self, tmp_path: Path) -> None:
        file = tmp_path / "state"
        contents = [bytes([value]) * 50_000 for value in (1, 2)]
        replace_file(file, contents[0])
        stop = tmp_path / "stop"
        code = (
            "import sys; from pathlib import Path\n"
            "file, stop, bad = Path(sys.argv[1]), Path(sys.argv[2]), 0\n"
            "stop.with_name('ready').touch()\n"
            "while not stop.exists():\n"
            "    data = file.read_bytes()\n"
            "    bad += len(data) != 50_000 or len(set(data)) != 1\n"
            "print(bad)\n"
        )
        command = [sys.executable, "-c", code, str(file), str(stop)]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            self.wait_for(tmp_path / "ready")
            for index in range(100):
                replace_file(file, contents[index % 2])
        finally:
            stop.touch()
            output, _ = reader.communicate(timeout=60)
        assert output.strip() == "0"


class TestIntegrity:
    @pytest.mark.parametrize("name", ["model.safetensors", "rows.json"])
    def test_a_damaged_file_is_named_and_nothing_loaded(
        self, tmp_path: Path, damage: Any, name: str
    ) -> None:
        """R5, R6."""
        write(tmp_path / "a")
        file = tmp_path / "a" / name
        damage.apply(file)
        with pytest.raises(IntegrityError) as caught:
            open_artifact(tmp_path / "a", kind="teacher")
        assert caught.value.exit_code == 3
        assert caught.value.subject == str(file)
        assert "weights_only" not in str(caught.value) and len(caught.value.lines()) == 1
        assert not damage.canary.exists()

    def test_another_file_of_the_same_format_is_damage(
        self, tmp_path: Path, other_tensors: Any
    ) -> None:
        write(tmp_path / "a")
        other_tensors.apply(tmp_path / "a" / "model.safetensors")
        with pytest.raises(IntegrityError, match=r"model\.safetensors: does not match"):
            open_artifact(tmp_path / "a", kind="teacher")

    def test_a_damaged_card_is_named(self, tmp_path: Path, damage: Any) -> None:
        write(tmp_path / "a")
        file = tmp_path / "a" / CARD
        damage.apply(file)
        kind = UserError if damage.name == "missing" else IntegrityError
        with pytest.raises(kind) as caught:
            open_artifact(tmp_path / "a", kind="teacher")
        assert caught.value.subject.startswith(str(tmp_path / "a"))
        assert not damage.canary.exists()

    @pytest.mark.parametrize("text", ["[]", "3", '"card"', "null", "{}", '{"card_sha256": 1}'])
    def test_json_that_is_no_card_is_damage(self, tmp_path: Path, text: str) -> None:
        write(tmp_path / "a")
        (tmp_path / "a" / CARD).write_text(text)
        with pytest.raises(IntegrityError):
            open_artifact(tmp_path / "a", kind="teacher")

    @pytest.mark.parametrize("key", ["facts", "kind", "files", "content", "format"])
    def test_an_edited_card_is_refused(self, tmp_path: Path, key: str) -> None:
        write(tmp_path / "a")
        card_file = tmp_path / "a" / CARD
        card = json.loads(card_file.read_text())
        card[key] = {"seed": 1} if key == "facts" else {}
        card_file.write_text(json.dumps(card))
        with pytest.raises(IntegrityError, match="was changed after it was written"):
            read_card(tmp_path / "a", kind="teacher")

    def test_an_edited_file_with_an_edited_hash_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "a")
        write(tmp_path / "b", seed=1)
        changed = (tmp_path / "b" / "rows.json").read_bytes()
        (tmp_path / "a" / "rows.json").write_bytes(changed)
        card_file = tmp_path / "a" / CARD
        card = json.loads(card_file.read_text())
        other = json.loads((tmp_path / "b" / CARD).read_text())
        card["files"]["rows.json"] = other["files"]["rows.json"]
        card_file.write_text(json.dumps(card))
        with pytest.raises(IntegrityError):
            open_artifact(tmp_path / "a", kind="teacher")

    def test_a_pickle_is_called_one(self, tmp_path: Path) -> None:
        write(tmp_path / "a")
        torch.save({"x": 1}, tmp_path / "a" / "model.safetensors")
        with pytest.raises(IntegrityError, match="pickle or archive, which is never loaded"):
            open_artifact(tmp_path / "a", kind="teacher")

    def test_another_kind_and_nothing_at_all_are_user_errors(self, tmp_path: Path) -> None:
        write(tmp_path / "a")
        with pytest.raises(UserError, match="is a teacher, not a student") as caught:
            open_artifact(tmp_path / "a", kind="student")
        assert caught.value.exit_code == 2
        with pytest.raises(UserError, match="there is no pool here"):
            open_artifact(tmp_path / "b", kind="pool")

    def test_a_file_in_the_place_of_the_folder_is_an_error_of_ours(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        with pytest.raises((UserError, StorageError)):
            open_artifact(tmp_path / "a", kind="pool")

    def test_parsing_tensors_names_the_file(self, tmp_path: Path, no_tensors: Any) -> None:
        """Beneath the hashes, the format itself refuses."""
        file = tmp_path / "t.safetensors"
        save_tensors(file, TENSORS)
        no_tensors.apply(file)
        with pytest.raises(IntegrityError, match=r"t\.safetensors: is not a whole"):
            parse_tensors(file.read_bytes(), file)
        assert not no_tensors.canary.exists()

    def test_changed_between_opening_and_reading(self, tmp_path: Path) -> None:
        """What was verified is what is read, also when a writer came in between."""
        write(tmp_path / "a", seed=1)
        found = open_artifact(tmp_path / "a", kind="teacher")
        write(tmp_path / "a", seed=2)
        try:
            noise = found.tensors("model.safetensors")["noise"]
        except IntegrityError:
            return
        assert int(noise[0]) == found.facts["seed"]


class TestFullDisk:
    """R7."""

    def test_old_one_stays_and_nothing_is_left(
        self, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
    ) -> None:
        write(tmp_path / "a", seed=1)
        with pytest.raises(StorageError) as caught, full_disk(50_000):
            write(tmp_path / "a", seed=2, size=100_000)
        assert caught.value.exit_code == 4
        assert "model.safetensors" in str(caught.value)
        assert "while writing 800," in str(caught.value)  # the bytes that were needed
        assert open_artifact(tmp_path / "a", kind="teacher").facts == {"seed": 1}
        assert leftovers(tmp_path) == []
        write(tmp_path / "a", seed=2, size=100_000)  # space was made: the same bytes as ever
        write(tmp_path / "b", seed=2, size=100_000)
        contents = [open_artifact(tmp_path / name, kind="teacher").content for name in "ab"]
        assert contents[0] == contents[1]

    def test_a_file_written_by_others_into_the_draft(
        self, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
    ) -> None:
        with (
            pytest.raises(StorageError) as caught,
            full_disk(1_000),
            new_artifact(tmp_path / "a", kind="pool", card={}) as draft,
        ):
            (draft.folder / "images.npy").write_bytes(bytes(5_000))
        assert caught.value.exit_code == 4 and list(tmp_path.iterdir()) == []

    def test_replace_file_keeps_the_old_content(
        self, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
    ) -> None:
        replace_file(tmp_path / "f", b"old")
        with pytest.raises(StorageError, match="5,000 bytes"), full_disk(1_000):
            replace_file(tmp_path / "f", bytes(5_000))
        assert (tmp_path / "f").read_bytes() == b"old" and leftovers(tmp_path) == []

    def test_a_place_that_can_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with (
            pytest.raises(StorageError) as caught,
            new_artifact(tmp_path / "file" / "a", kind="pool", card={}),
        ):
            pass
        assert str(tmp_path / "file") in str(caught.value)

    def test_a_small_temporary_folder_does_not_matter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Staged beside its place, never in $TMPDIR: a rename does not cross file systems."""
        monkeypatch.setenv("TMPDIR", "/nonexistent")
        monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
        write(tmp_path / "a")
        replace_file(tmp_path / "f", b"x")
        assert isinstance(open_artifact(tmp_path / "a", kind="teacher"), Artifact)


class TestKilledBetweenTheRenames:
    def test_the_new_one_can_still_be_written(self, tmp_path: Path) -> None:
        write(tmp_path / "a", seed=1)
        os.rename(tmp_path / "a", tmp_path / ".a.old.tmp")
        with pytest.raises(UserError):
            open_artifact(tmp_path / "a", kind="teacher")
        write(tmp_path / "a", seed=2)
        assert open_artifact(tmp_path / "a", kind="teacher").facts == {"seed": 2}
        assert leftovers(tmp_path) == []


def test_hashes_on_the_card_are_of_the_files(tmp_path: Path) -> None:
    import hashlib

    write(tmp_path / "a")
    card = json.loads((tmp_path / "a" / CARD).read_text())
    for name, entry in card["files"].items():
        data = (tmp_path / "a" / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert card["content"] == hash_json(card["files"])
