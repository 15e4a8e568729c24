"""Compiled networks compute what plain ones compute."""

from __future__ import annotations

import pytest
import torch

from kdci.config.catalog import DATASETS
from kdci.models import build_pixel_model
from kdci.models.compiling import compile_frozen, compile_trained

SPEC = DATASETS["digits"]


def images() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.rand(4, SPEC.channels, SPEC.image_size, SPEC.image_size, generator=random)


@pytest.mark.slow
def test_a_frozen_network_predicts_the_same() -> None:
    torch.manual_seed(0)
    model = build_pixel_model("wrn-10-1", SPEC).eval().requires_grad_(False)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    compiled = compile_frozen(model)
    assert not compiled.training
    with torch.no_grad():
        for found, wanted in zip(compiled(images()), model(images()), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_a_trained_network_gets_the_same_gradients_under_the_same_names() -> None:
    torch.manual_seed(0)
    model = build_pixel_model("wrn-10-1", SPEC)
    other = build_pixel_model("wrn-10-1", SPEC)
    other.load_state_dict(model.state_dict())
    compile_trained(other)
    for one in (model, other):
        one.train()
        one(images()).logits.square().sum().backward()
    assert other.state_dict().keys() == model.state_dict().keys()
    for (name, plain), (_, compiled) in zip(
        model.named_parameters(), other.named_parameters(), strict=True
    ):
        largest = float(plain.grad.abs().max())
        torch.testing.assert_close(
            compiled.grad, plain.grad, rtol=1e-3, atol=1e-4 * largest, msg=name
        )
