"""Plain tensors, as safetensors keeps them, loaded into networks that ask for a version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdci.models import build_backbone, load_state
from kdci.store.artifacts import save_tensors

NAMES = [
    "wrn-10-1",
    "mobilenetv2",
    *(f"torchvision-{name}" for name in ("mnasnet0_5", "mnasnet1_3", "shufflenet_v2_x0_5")),
    "torchvision-vit_b_32",
]


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(name, num_classes=3, channels=3, image_size=32).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_answers_as_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    saved, other = network(name, 1), network(name, 2)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(other(images).features, saved(images).features)
        save_tensors(tmp_path / "x.safetensors", saved.state_dict())
        load_state(other, load_file(tmp_path / "x.safetensors"))
        assert all(map(torch.equal, other(images), saved(images)))


def test_below_another_module() -> None:
    """The version belongs to a part of a ``PixelModel``."""
    outer = nn.Sequential(network("torchvision-mnasnet0_5", 1))
    again = nn.Sequential(network("torchvision-mnasnet0_5", 2))
    load_state(again, dict(outer.state_dict()))
    found = again.state_dict()
    assert all(torch.equal(found[name], value) for name, value in outer.state_dict().items())


@pytest.mark.parametrize(
    "tensors",
    [{}, {"weight": torch.ones(2, 3)}, {"weight": torch.ones(3, 2), "bias": torch.ones(2)}],
)
def test_tensors_that_do_not_fit(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(RuntimeError, match="Error"):
        load_state(nn.Linear(3, 2), tensors)
