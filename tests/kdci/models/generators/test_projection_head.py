from __future__ import annotations

import torch

from kdci.synthesis.instance_discrimination import ProjectionHead


def test_shapes_and_parameters() -> None:
    head = ProjectionHead(12, 5)
    assert head(torch.rand(7, 12)).shape == (7, 5)
    assert [tuple(weight.shape) for weight in head.parameters()] == [(12, 12), (12,), (5, 12), (5,)]


def test_value_by_hand() -> None:
    head = ProjectionHead(2, 2)
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        head.hidden.bias.copy_(torch.tensor([0.0, 1.0]))
        head.output.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        head.output.bias.copy_(torch.tensor([0.0, 4.0]))
        # (3, 5) -> (3, -4) -> ReLU (3, 0) -> (3, 4) -> length 1
        got = head(torch.tensor([[3.0, 5.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.6, 0.8]]))


def test_projections_have_length_one() -> None:
    torch.manual_seed(0)
    got = ProjectionHead(6, 9)(100 * torch.randn(20, 6)).detach()
    torch.testing.assert_close(got.norm(dim=1), torch.ones(20))
    assert float(got.std(dim=0).max()) > 0.05
