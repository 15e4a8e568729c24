from __future__ import annotations

import pytest
import torch

from kdci.data.datasets.labelled import LabelledImages


def test_length_is_the_number_of_labels() -> None:
    data = LabelledImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3).long())
    assert len(data) == 3


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(3, 1, 2, 2), torch.zeros(3).long()),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(3).long()),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2).long()),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int32)),
    ],
)
def test_other_shapes_and_dtypes_are_refused(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        LabelledImages(images, labels)
