from __future__ import annotations

import pytest
import torch

from kdci.synthesis.patch_game import PatchDiscriminator


def test_parameters_and_shape_of_the_reference() -> None:
    discriminator = PatchDiscriminator(channels=3)
    assert sum(weight.numel() for weight in discriminator.parameters()) == 531_328
    assert discriminator(torch.rand(2, 3, 32, 32)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("size", [8, 16, 28])
def test_width_channels_and_size_are_free(size: int) -> None:
    discriminator = PatchDiscriminator(channels=1, width=6)
    shapes = [tuple(weight.shape) for weight in discriminator.parameters()]
    assert shapes == [(6, 1, 4, 4), (6,), (12, 6, 4, 4), (12,), (12,), (1, 12, 1, 1)]
    images = torch.rand(2, 1, size, size)
    assert discriminator(images).shape == (2, 1, size // 4, size // 4)


def test_a_logit_sees_ten_by_ten_pixels_and_its_neighbour_four_further() -> None:
    torch.manual_seed(0)
    # In train mode BatchNorm would let all other patches in.
    discriminator = PatchDiscriminator(channels=3, width=8).eval()

    def seen(row: int, column: int) -> tuple[list[int], list[int]]:
        images = torch.rand(1, 3, 32, 32, requires_grad=True)
        discriminator(images)[0, 0, row, column].backward()
        assert images.grad is not None
        support = (images.grad != 0).any(dim=1)[0]
        rows, columns = support.any(dim=1), support.any(dim=0)
        assert int(support.sum()) == int(rows.sum()) * int(columns.sum())  # no hole in it
        return rows.nonzero().flatten().tolist(), columns.nonzero().flatten().tolist()

    # The two paddings of 1 put the first patch's corner 3 pixels outside of the image.
    assert seen(3, 4) == (list(range(9, 19)), list(range(13, 23)))
    assert seen(4, 5) == (list(range(13, 23)), list(range(17, 27)))
    assert seen(0, 7) == (list(range(0, 7)), list(range(25, 32)))


def test_in_train_mode_the_batch_is_normalised() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=1, width=4)
    images = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        alone, together = discriminator(images[:2]), discriminator(images)[:2]
        assert not torch.allclose(alone, together)
        discriminator.eval()
        torch.testing.assert_close(discriminator(images[:2]), discriminator(images)[:2])
