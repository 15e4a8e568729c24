from __future__ import annotations

import pytest
import torch

from kdci.training.optimizers import Adam, set_gradients

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("of_loss", FORMATS)
@pytest.mark.parametrize("of_leaf", FORMATS)
def test_adam_moves_each_element_by_its_own_gradient(
    of_leaf: torch.memory_format, of_loss: torch.memory_format
) -> None:
    """Whatever the memory format of the gradient that comes out of the loss."""
    signs = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).sign()
    leaf = torch.zeros(2, 3, 4, 5).contiguous(memory_format=of_leaf).requires_grad_()
    shown = leaf.contiguous(memory_format=of_loss)
    loss = (shown * signs.contiguous(memory_format=of_loss)).sum()
    set_gradients(loss, [leaf])
    assert leaf.grad is not None and torch.equal(leaf.grad, signs)
    Adam([leaf], lr=0.5).step()
    # Adam's first step has the length of its rate, against the gradient's sign.
    torch.testing.assert_close(leaf.detach(), -0.5 * signs)


def test_replaces_what_was_there_and_leaves_other_leaves_alone() -> None:
    first, second, other = (torch.full((2,), 3.0, requires_grad=True) for _ in range(3))
    first.grad = torch.full((2,), 9.0)
    set_gradients((first * first * second * other).sum(), [first, second])
    assert first.grad.tolist() == [54.0, 54.0]
    assert second.grad is not None and second.grad.tolist() == [27.0, 27.0]
    assert other.grad is None
