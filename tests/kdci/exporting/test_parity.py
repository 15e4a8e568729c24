from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdci.errors import IntegrityError
from kdci.exporting.parity import Difference, differences, parity_inputs, require_parity


def total(images: Tensor) -> Tensor:
    return images.flatten(1).sum(dim=1, keepdim=True)


def test_inputs_are_random_black_and_white_of_one_image_and_of_seven() -> None:
    inputs = parity_inputs((3, 4, 4))
    assert {images.shape[0] for images in inputs.values()} == {1, 7}
    assert all(images.shape[1:] == (3, 4, 4) for images in inputs.values())
    ranges = {(float(images.min()), float(images.max())) for images in inputs.values()}
    assert {(0.0, 0.0), (1.0, 1.0)} < ranges
    uniform = inputs["uniform, batch 7"]
    assert 0 <= uniform.min() < 0.1 and 0.9 < uniform.max() <= 1
    again = parity_inputs((3, 4, 4))
    assert all(torch.equal(images, again[name]) for name, images in inputs.items())


def test_largest_difference_of_each_input() -> None:
    def other(images: Tensor) -> Tensor:
        found = total(images)
        found[0] += 0.25 * images.shape[0]
        found[-1] -= 0.125
        return found

    inputs = {"one": torch.zeros(1, 1, 2, 2), "three": torch.ones(3, 1, 2, 2)}
    found = differences(other, total, inputs)
    assert found == {"one": Difference(0.125, 0.0), "three": Difference(0.75, 4.0)}
    assert {each.absolute for each in differences(total, total, inputs).values()} == {0.0}


def test_logits_of_another_shape_are_no_match() -> None:
    with pytest.raises(ValueError, match="logits of"):
        differences(lambda images: total(images)[:1], total, {"two": torch.ones(2, 1, 2, 2)})


def test_what_is_within_the_tolerance_is_recorded() -> None:
    found = require_parity(
        {"a": Difference(1e-6, 0.5), "b": Difference(1e-4, 0.9), "c": Difference(3e-3, 100.0)},
        subject="it",
    )
    assert found == {
        "max_abs_difference": 3e-3,
        "max_relative_difference": 1e-4,
        "by_input": {"a": 1e-6, "b": 1e-4, "c": 3e-3},
    }


@pytest.mark.parametrize(
    "bad",
    [
        Difference(1.1e-4, 0.5),
        Difference(1.1e-4, 1.0),
        Difference(1.1e-2, 100.0),
        Difference(float("inf"), 1.0),
        Difference(float("nan"), 1.0),
        Difference(float("nan"), float("nan")),
        Difference(float("inf"), float("inf")),
    ],
)
def test_what_is_beyond_it_or_no_number_is_refused(bad: Difference) -> None:
    found = {"a": Difference(0.0, 1.0), "b": bad, "c": Difference(1e-5, 1.0)}
    with pytest.raises(IntegrityError, match=r"it: differs from the student by .* \(b\)"):
        require_parity(found, subject="it")


def test_rounding_of_large_logits_is_no_difference() -> None:
    """The same sum in another order: float32 is not that exact in absolute terms."""
    weights = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 3000

    def one(images: Tensor) -> Tensor:
        return images.flatten(1) @ weights.T

    def other(images: Tensor) -> Tensor:
        return (images.flatten(1)[:, None].flip(2) * weights.flip(1)).cumsum(dim=2)[..., -1]

    found = differences(other, one, parity_inputs((1, 8, 8)))
    assert require_parity(found, subject="it")["max_abs_difference"] > 1e-4
