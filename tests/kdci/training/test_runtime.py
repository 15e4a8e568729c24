from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from kdci.errors import NumericError, UserError
from kdci.training.arithmetic import ComputeFormat
from kdci.training.runtime import (
    Runtime,
    available_cores,
    computes_bf16,
    derive_seed,
    generator,
    require_finite,
    start,
    versions,
)


@pytest.fixture
def untouched() -> Iterator[None]:
    """Put back what ``start`` sets for the whole process."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("untouched")
class TestStart:
    def test_sets_up_torch_as_it_says(self) -> None:
        runtime = start(device="cpu", threads=2, precision="fp32")
        formats = (ComputeFormat("fp32", "channels_last"),)
        assert runtime == Runtime(torch.device("cpu"), 2, "fp32", formats)
        assert torch.get_num_threads() == 2
        assert runtime.format.autocast_dtype is None
        assert (
            start(device="cpu", threads=1, precision="bf16").format.autocast_dtype is torch.bfloat16
        )

    def test_auto_takes_what_is_there(self) -> None:
        runtime = start(device="auto", threads="auto", precision="auto")
        assert runtime.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert runtime.threads == available_cores() == torch.get_num_threads()
        assert runtime.precision == ("bf16" if computes_bf16(runtime.device) else "fp32")

    @pytest.mark.parametrize("native", [True, False])
    def test_auto_leaves_to_measure_what_is_not_said(
        self, monkeypatch: pytest.MonkeyPatch, native: bool
    ) -> None:
        monkeypatch.setattr("kdci.training.runtime.computes_bf16", lambda _: native)
        both = [ComputeFormat("fp32", "channels_last"), ComputeFormat("fp32", "contiguous")]
        options = {"device": "cpu", "threads": 1}
        assert [*start(**options, precision="fp32", memory_format="auto").formats] == both
        one = start(**options, precision="fp32", memory_format="contiguous")
        assert (
            one.formats == (ComputeFormat("fp32", "contiguous"),) and not one.format.channels_last
        )
        found = start(**options, precision="auto", memory_format="auto").formats
        likeliest_first = ["fp32 channels_last", "fp32 contiguous"]
        if native:
            likeliest_first.insert(0, "bf16 channels_last")
            likeliest_first.insert(2, "bf16 contiguous")
        assert [str(one) for one in found] == likeliest_first

    def test_a_device_that_is_not_there_is_a_user_error(self) -> None:
        with pytest.raises(UserError, match="runtime.device: cuda:99 is not here") as caught:
            start(device="cuda:99", threads=1, precision="fp32")
        assert caught.value.exit_code == 2

    def test_card_holds_what_the_bits_depend_on_and_no_clock(self) -> None:
        first = start(device="cpu", threads=1, precision="fp32").card()
        assert first == start(device="cpu", threads=1, precision="fp32").card()
        assert first["device"] == "cpu" and first["threads"] == 1
        assert first["precision"] == "fp32"
        assert first["cpu_capability"] == torch.backends.cpu.get_cpu_capability()


class TestSeeds:
    def test_each_purpose_has_its_own_and_they_never_change(self) -> None:
        # First 7 bytes of `printf 0/distill/student | sha256sum`.
        assert derive_seed(0, "distill", "student") == 0xC7E04048DE2023
        parts = [(0,), (1,), (0, "a"), (0, "b"), (1, "a"), ("a", 0), (1, 23), (12, 3)]
        assert len({derive_seed(*p) for p in parts}) == len(parts)

    def test_seeds_fit_every_consumer(self) -> None:
        for seed in range(200):
            derived = derive_seed(seed)
            assert 0 <= derived < 2**56
            torch.Generator().manual_seed(derived)

    def test_generator_repeats_and_leaves_the_global_stream(self) -> None:
        before = torch.get_rng_state()
        one, same, other = (torch.rand(4, generator=generator(s, "rows")) for s in (0, 0, 1))
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), before)


class TestRequireFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
    def test_names_the_tensor(self, value: float, name: str) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        require_finite(model, "the student")
        with torch.no_grad():
            model.state_dict()[name].view(-1)[1] = value
        with pytest.raises(NumericError, match=f"the student: {name} is not finite") as caught:
            require_finite(model, "the student")
        assert caught.value.exit_code == 5


def test_versions_are_those_that_are_imported() -> None:
    import numpy as np

    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert {"python", "torchvision", "scikit-learn", "kdci"} <= found.keys()
