"""What is done to another library's network."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from kdci.models import Prediction
from kdci.models.predicting import (
    PredictingLinear,
    last_linear,
    predict_with_,
    set_channels_,
    without_chance_,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, dilation=2, padding=1), pool, head)


def test_the_last_linear_layer_answers_with_what_it_reads() -> None:
    net = network()
    names = list(net.state_dict())
    images = torch.rand(2, 3, 9, 9)
    expected = net(images)
    last = last_linear(net)
    assert last is net.get_submodule("2.2")
    assert predict_with_(net, last) is net
    found = net(images)
    assert isinstance(found, Prediction) and torch.equal(found.logits, expected)
    assert torch.equal(
        found.features, net[2].get_submodule("1")(net[2].get_submodule("0")(net[:2](images)))
    )
    assert list(net.state_dict()) == names
    replaced = net.get_submodule("2.2")
    assert isinstance(replaced, PredictingLinear) and replaced.weight is last.weight
    assert (replaced.in_features, replaced.out_features) == (6, 3)
    assert "bias" not in dict(replaced.named_parameters())


def test_a_network_without_linear_layers_has_no_last_one() -> None:
    assert last_linear(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())) is None


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels(channels: int) -> None:
    net = network()
    old = net[0]
    set_channels_(net, channels)
    new = net[0]
    assert isinstance(new, nn.Conv2d) and new.in_channels == channels
    assert (new is old) == (channels == 3)
    assert (new.stride, new.dilation, new.padding) == ((2, 2), (2, 2), (1, 1))
    assert new.bias is old.bias
    assert net(torch.rand(2, channels, 9, 9)).shape == (2, 3)


@pytest.mark.parametrize("first", [nn.Linear(3, 3), nn.Conv2d(3, 6, 3, groups=3)])
def test_channels_that_can_not_be_set(first: nn.Module) -> None:
    with pytest.raises(ValueError, match="does not take 1 channels"):
        set_channels_(nn.Sequential(first), 1)


def test_nothing_is_left_to_chance() -> None:
    layers = [nn.Dropout(0.5), nn.Dropout2d(0.5), StochasticDepth(0.5, "row"), nn.LPPool2d(2.0, 1)]
    if importlib.util.find_spec("timm") is not None:
        layers.append(importlib.import_module("timm.layers").DropPath(0.5))
    for layer in layers:
        images = torch.rand(64, 3, 2, 2) + 0.1
        expected = layer.eval()(images)
        before = torch.get_rng_state()
        torch.testing.assert_close(without_chance_(layer.train())(images), expected)
        assert torch.equal(torch.get_rng_state(), before)
