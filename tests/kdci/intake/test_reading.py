"""From bytes to tensors: where state dicts are found, what is refused, and that nothing runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from kdci.errors import IntegrityError, KdciError, UserError
from kdci.intake import reading as module
from kdci.intake.limits import locked_down
from kdci.intake.reading import read_tensors

SUSPICIOUS = ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "exec", "os.fork")


class Watch:
    """Notes the audit events of a time; a hook can not be taken away."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on and event in SUSPICIOUS:
            self.events.append(event)


@pytest.fixture(scope="module")
def the_watch() -> Watch:
    return Watch()


@pytest.fixture
def watch(the_watch: Watch) -> Iterator[Watch]:
    the_watch.events.clear()
    yield the_watch
    the_watch.on = False


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": s, "epoch": 3, "best_acc1": torch.tensor(0.9)}, "state_dict"),
        (lambda s: {"model": {"state_dict": s}}, "model.state_dict"),
        (lambda s: {"weights": s, "optimizer": {"state": {}, "lr": 0.1}}, "weights"),
        (lambda s: {"ema": s}, "ema"),
    ],
)
def test_state_dict_is_found(saved, state, wrap, key) -> None:
    reading = read_tensors(saved(wrap(state)), "x.pt")
    assert same(reading.tensors, state)
    assert (reading.key, reading.others, reading.format) == (key, (), "torch")


def test_plain_weights_come_before_averaged_ones(saved, state) -> None:
    averaged = {name: value + 1 for name, value in state.items()}
    data = saved({"state_dict_ema": averaged, "state_dict": state})
    reading = read_tensors(data, "x.pt")
    assert same(reading.tensors, state) and reading.others == ("state_dict_ema",)
    assert same(read_tensors(data, "x.pt", key="state_dict_ema").tensors, averaged)
    with pytest.raises(UserError, match="no state dict under net, only under state_dict, state_"):
        read_tensors(data, "x.pt", key="net")


def test_key_may_be_any_path(saved, state) -> None:
    data = saved({"runs": {"best": state}})
    assert same(read_tensors(data, "x.pt", key="runs.best").tensors, state)
    with pytest.raises(UserError, match="no state dict: its keys are runs"):
        read_tensors(data, "x.pt")


@pytest.mark.parametrize("value", [{}, [1, 2], 3, {"state_dict": {}}])
def test_no_state_dict(saved, value) -> None:
    with pytest.raises(UserError, match="holds no state dict"):
        read_tensors(saved(value), "x.pt")


def test_safetensors(state) -> None:
    reading = read_tensors(save(state), "x.safetensors")
    assert same(reading.tensors, state) and reading.format == "safetensors"
    for damaged in (save(state)[:-1], save(state)[:20], save(state)[:9] + b"!" + save(state)[10:]):
        with pytest.raises(IntegrityError):
            read_tensors(damaged, "x.safetensors")


def test_floats_become_float32(saved) -> None:
    value = {
        "a": torch.tensor([1.5]).half(),
        "b": torch.tensor([0.1], dtype=torch.float64),
        "n": torch.tensor(7),
    }
    reading = read_tensors(saved(value), "x.pt")
    assert reading.converted == {"float16": 1, "float64": 1}
    assert reading.tensors["a"].tolist() == [1.5]
    assert reading.tensors["b"].dtype == torch.float32
    assert reading.tensors["n"].dtype == torch.int64


def test_parameters_and_views_become_plain_tensors(saved) -> None:
    base = torch.arange(12.0).view(3, 4)
    value = {"p": nn.Parameter(torch.ones(2)), "view": base[:, 1]}
    tensors = read_tensors(saved(value), "x.pt").tensors
    assert type(tensors["p"]) is torch.Tensor and not tensors["p"].requires_grad
    assert tensors["view"].is_contiguous() and tensors["view"].tolist() == [1.0, 5.0, 9.0]


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, device="meta"), "meta"),
        (torch.zeros(2).to(torch.float8_e4m3fn), "float8"),
        (torch.zeros(1).expand(1_000_000), "1,000,000 elements, more than the file holds"),
    ],
)
def test_what_is_no_plain_tensor(saved, tensor, told) -> None:
    with pytest.raises(KdciError, match=told):
        read_tensors(saved({"w": tensor}), "x.pt")


@pytest.mark.parametrize("name", ["a b", "a\n", "", "x" * 300, "\x1b[31m"])
def test_tensor_names(saved, name) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_tensors(saved({name: torch.zeros(1)}), "x.pt")
    (line,) = caught.value.lines()
    assert line.isprintable()


def test_too_many_tensors_or_bytes(saved, state, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(state)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(IntegrityError, match="at most 10"):
        read_tensors(data, "x.pt")
    monkeypatch.setattr(module, "MAX_ENTRIES", 1)
    with pytest.raises(IntegrityError, match="2 tensors, at most 1"):
        read_tensors(data, "x.pt")


class TestNothingRuns:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_poisoned_pickle(self, saved, poisoned, canary, watch, legacy) -> None:
        data = saved(poisoned, legacy=legacy)
        with pytest.raises(IntegrityError):
            read_tensors(data, "x.pt")  # torch imports parts of itself at the first time
        watch.on = True
        with pytest.raises(IntegrityError) as caught:
            read_tensors(data, "x.pt")
        watch.on = False
        assert watch.events == [] and not canary.exists()
        (line,) = caught.value.lines()
        assert "weights_only=False" not in line
        assert legacy or "posix.system" in line

    def test_the_watch_sees_a_pickle_at_work(
        self, saved, poisoned, canary, watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import io

        monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # stages set it
        watch.on = True
        torch.load(io.BytesIO(saved(poisoned)), weights_only=False)
        assert canary.exists()
        assert {"pickle.find_class", "os.system"} <= set(watch.events)

    @pytest.mark.parametrize(
        ("value", "named"),
        [
            (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
            ({"state_dict": {}, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
            ({"state_dict": {}, "accuracy": np.float64(3.0)}, "numpy"),
        ],
    )
    def test_more_than_tensors(self, saved, value, named) -> None:
        with pytest.raises(IntegrityError, match=named):
            read_tensors(saved(value), "x.pt")


class TestLockdown:
    @pytest.mark.parametrize(
        "deed",
        [
            lambda path: path.write_text("x"),
            lambda path: path.mkdir(),
            lambda path: path.parent.rename(path),
            lambda path: __import__("os").system("true"),
            lambda path: __import__("subprocess").run(["true"], check=False),
            lambda path: __import__("os").fork(),
            lambda path: __import__("socket").socket(),
            lambda path: __import__("pickle").loads(b"cos\nsystem\n."),
        ],
    )
    def test_denies(self, tmp_path: Path, deed) -> None:
        place = tmp_path / "place"
        denied = pytest.raises(PermissionError, match="denied while a foreign file is read")
        with denied, locked_down():
            deed(place)
        assert not place.exists()

    def test_ends(self, tmp_path: Path) -> None:
        with locked_down():
            assert Path(__file__).read_text(encoding="utf-8")
        (tmp_path / "x").write_text("x")

    def test_reading_needs_nothing_of_it(self, saved, state) -> None:
        with locked_down():
            assert same(read_tensors(saved(state), "x.pt").tensors, state)
