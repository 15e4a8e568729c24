from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdci.errors import IntegrityError, StorageError
from kdci.store.checkpoints import Checkpoints, load_state, pack, save_state, unpack

Flatten = Callable[[Any], dict[str, object]]


def state_at(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((50,), float(step))}


def assert_no_temporary(folder: Path) -> None:
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


class TestState:
    def test_every_kind_of_value_comes_back(self, tmp_path: Path, flatten: Flatten) -> None:
        base = torch.arange(24.0).view(2, 3, 2, 2)
        state: dict[Any, Any] = {
            "numbers": [1, -2, 2**60, 0.1, 1e-300, float("inf"), True, None, "text", "é"],
            "empty": {"list": [], "dict": {}, "tensor": torch.empty(0, 3)},
            7: {"int key": 1, 8: "both"},
            "tensors": {
                "bool": torch.tensor([True, False]),
                "bytes": torch.arange(5, dtype=torch.uint8),
                "half": torch.tensor([1.5]).bfloat16().float(),
                "double": torch.tensor(1 / 3, dtype=torch.float64),
                "scalar": torch.tensor(5),
                "channels last": base.to(memory_format=torch.channels_last),
                "shared": [base, base, base[0]],
                "nan": torch.tensor([float("nan"), -0.0]),
            },
        }
        save_state(tmp_path / "s", state)
        back = load_state(tmp_path / "s")
        assert flatten(back) == flatten(state)
        assert list(back) == list(state) and isinstance(back["numbers"][6], bool)

    def test_saved_and_loaded_tensors_do_not_share_memory(self, tmp_path: Path) -> None:
        weight = nn.Parameter(torch.zeros(2, 3))
        save_state(tmp_path / "s", {"a": weight, "b": weight.detach()[0]})
        back = load_state(tmp_path / "s")
        back["a"] += 1
        assert back["b"].tolist() == [0, 0, 0] and float(weight.detach().sum()) == 0

    def test_an_optimiser_state_restores_the_optimiser(
        self, tmp_path: Path, flatten: Flatten
    ) -> None:
        def optimiser(weight: nn.Parameter) -> torch.optim.Optimizer:
            return torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.999))

        def step(weight: nn.Parameter, adam: torch.optim.Optimizer, value: float) -> None:
            weight.grad = torch.full_like(weight, value)
            adam.step()

        weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        adam = optimiser(weight)
        step(weight, adam, 0.3)
        save_state(tmp_path / "s", {"optimizer": adam.state_dict(), "weight": weight})
        back = load_state(tmp_path / "s")
        resumed = nn.Parameter(back["weight"].clone())
        again = optimiser(resumed)
        again.load_state_dict(back["optimizer"])
        for w, a in ((weight, adam), (resumed, again)):
            step(w, a, -0.7)
        assert torch.equal(weight, resumed)
        assert flatten(again.state_dict()["state"]) == flatten(adam.state_dict()["state"])

    def test_same_state_same_bytes(self, tmp_path: Path) -> None:
        for name in "ab":
            save_state(tmp_path / name, {**state_at(1), "more": [torch.ones(2), 0.1]})
        for suffix in (".json", ".safetensors"):
            contents = [(tmp_path / name).with_suffix(suffix).read_bytes() for name in "ab"]
            assert contents[0] == contents[1]

    @pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", nn.Linear(1, 1), torch.float32])
    def test_nothing_that_would_need_a_pickle(self, tmp_path: Path, value: object) -> None:
        with pytest.raises(TypeError, match=r"state/deep/0: a checkpoint can not hold a"):
            save_state(tmp_path / "s", {"deep": [value]})
        assert list(tmp_path.iterdir()) == []

    def test_pack_leaves_no_tensor_in_the_tree(self, flatten: Flatten) -> None:
        state = {"a": [torch.ones(2), {"b": torch.zeros(1)}]}
        tensors, tree = pack(state)
        assert flatten(unpack(tensors, json.loads(json.dumps(tree)))) == flatten(state)
        assert len(tensors) == 2

    @pytest.mark.parametrize(
        "state",
        [
            {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1)},
            {"a": {0: torch.zeros(1), "0": torch.ones(1)}},
        ],
    )
    def test_keys_that_read_alike_do_not_mix(
        self, tmp_path: Path, flatten: Flatten, state: dict[str, Any]
    ) -> None:
        save_state(tmp_path / "s", state)
        assert flatten(load_state(tmp_path / "s")) == flatten(state)


class TestDamage:
    """R5, R6."""

    @pytest.mark.parametrize("suffix", [".json", ".safetensors"])
    def test_is_named_and_not_executed(self, tmp_path: Path, damage: Any, suffix: str) -> None:
        save_state(tmp_path / "state", state_at(1))
        damage.apply((tmp_path / "state").with_suffix(suffix))
        with pytest.raises(IntegrityError) as caught:
            load_state(tmp_path / "state")
        assert caught.value.exit_code == 3 and caught.value.subject.startswith(
            str(tmp_path / "state")
        )
        assert "weights_only" not in str(caught.value)
        assert not damage.canary.exists()

    def test_other_tensors_are_damage(self, tmp_path: Path, other_tensors: Any) -> None:
        save_state(tmp_path / "state", state_at(1))
        other_tensors.apply(tmp_path / "state.safetensors")
        with pytest.raises(IntegrityError):
            load_state(tmp_path / "state")

    @pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}", '{"record_sha256": 1}'])
    def test_json_that_is_no_record_is_damage(self, tmp_path: Path, text: str) -> None:
        save_state(tmp_path / "state", state_at(1))
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(IntegrityError):
            load_state(tmp_path / "state")

    def test_an_edited_number_is_damage(self, tmp_path: Path) -> None:
        save_state(tmp_path / "state", state_at(1))
        file = tmp_path / "state.json"
        text = file.read_text()
        assert '{"value": 1}' in text
        file.write_text(text.replace('{"value": 1}', '{"value": 2}'))
        with pytest.raises(IntegrityError):
            load_state(tmp_path / "state")

    def test_halves_of_two_states_do_not_pass_for_one(self, tmp_path: Path) -> None:
        for step in (1, 2):
            save_state(tmp_path / f"state{step}", state_at(step))
        (tmp_path / "state1.json").replace(tmp_path / "state2.json")
        with pytest.raises(IntegrityError):
            load_state(tmp_path / "state2")


class TestCheckpoints:
    def test_nothing_saved_yet(self, tmp_path: Path) -> None:
        assert Checkpoints(tmp_path / "nowhere").load_newest() is None

    def test_the_newest_two_are_kept(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path / "work")
        for step in (5, 30, 200, 1000):
            checkpoints.save(step, state_at(step))
        newest = checkpoints.load_newest()
        assert newest is not None and newest["step"] == 1000
        names = sorted(p.name for p in (tmp_path / "work").iterdir())
        assert names == [
            "checkpoint-000000200.json",
            "checkpoint-000000200.safetensors",
            "checkpoint-000001000.json",
            "checkpoint-000001000.safetensors",
        ]

    @pytest.mark.parametrize("suffix", [".json", ".safetensors"])
    def test_a_damaged_newest_costs_the_steps_since_the_one_before(
        self,
        tmp_path: Path,
        damage: Any,
        suffix: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(step, state_at(step))
        damage.apply(tmp_path / f"checkpoint-000000002{suffix}")
        with caplog.at_level(logging.WARNING):
            found = checkpoints.load_newest()
        assert found is not None and found["step"] == 1
        # Without its JSON half a checkpoint was never finished: nothing to warn of.
        unfinished = damage.name == "missing" and suffix == ".json"
        assert ("checkpoint-000000002" in caplog.text) is not unfinished
        assert not damage.canary.exists()

    def test_a_tensor_half_alone_is_no_checkpoint(self, tmp_path: Path) -> None:
        """Killed between the two halves."""
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, state_at(1))
        checkpoints.save(2, state_at(2))
        (tmp_path / "checkpoint-000000002.json").unlink()
        found = checkpoints.load_newest()
        assert found is not None and found["step"] == 1

    def test_all_damaged_is_none_and_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(step, state_at(step))
            (tmp_path / f"checkpoint-{step:09d}.safetensors").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            assert checkpoints.load_newest() is None
        assert caplog.text.count("kdci: warning:") == 2

    @pytest.mark.parametrize("damaged", [(20,), (10, 20)])
    def test_what_is_saved_after_a_fall_back_counts(
        self, tmp_path: Path, damaged: tuple[int, ...]
    ) -> None:
        """Damaged states of later steps must not crowd out whole ones of earlier steps."""
        checkpoints = Checkpoints(tmp_path)
        for step in (10, 20):
            checkpoints.save(step, state_at(step))
        for step in damaged:
            (tmp_path / f"checkpoint-{step:09d}.json").write_bytes(b"")
        checkpoints.load_newest()
        for step in (4, 6) if 10 in damaged else (12, 14):
            checkpoints.save(step, state_at(step))
            found = Checkpoints(tmp_path).load_newest()
            assert found is not None and found["step"] == step
        whole = [p for p in tmp_path.glob("*.json") if p.stat().st_size]
        assert len(whole) == 2

    def test_the_same_step_again_replaces_it(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for value in (1.0, 2.0):
            checkpoints.save(3, {"value": value})
        assert checkpoints.load_newest() == {"value": 2.0}

    def test_a_full_disk_keeps_what_was_there(
        self, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
    ) -> None:
        """R7."""
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, state_at(1))
        big = {"weights": torch.zeros(100_000)}
        with pytest.raises(StorageError) as caught, full_disk(50_000):
            checkpoints.save(2, big)
        assert caught.value.exit_code == 4 and "bytes" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        found = checkpoints.load_newest()
        assert found is not None and found["step"] == 1
        assert_no_temporary(tmp_path)
        checkpoints.save(2, big)
        newest = checkpoints.load_newest()
        assert newest is not None and newest.keys() == {"weights"}

    def test_a_folder_that_can_not_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StorageError):
            Checkpoints(tmp_path / "file" / "work").save(1, state_at(1))
