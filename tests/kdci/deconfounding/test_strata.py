from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdci.data.bank.stratified_rows import StratifiedRows
from kdci.deconfounding.confounder import Space, build_dictionary
from kdci.deconfounding.strata import class_strata, drawn_proportions, prototype_strata
from kdci.models import PixelModel, Prediction

MakeModel = Callable[[int], PixelModel]

TEACHER_SEED = 2


def make_images(num_images: int = 60) -> Tensor:
    """Return noise from dark to bright, in which the teacher sees all three classes."""
    noise = torch.rand(num_images, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return (noise * torch.linspace(0, 3, num_images).view(-1, 1, 1, 1)).clamp(0, 1)


class Pixels(nn.Module):
    """Logits and features are the pixels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Prediction:
        pixels = self.weight * images.flatten(1)
        return Prediction(pixels, pixels)


def pixels_model() -> PixelModel:
    return PixelModel(Pixels(), mean=(0.0,), std=(1.0,)).eval()


def in_space(teacher: PixelModel, image: Tensor, space: Space) -> list[float]:
    with torch.no_grad():
        output = teacher(image[None])
    values = {
        "logits": output.logits,
        "probabilities": output.logits.exp() / output.logits.exp().sum(),
        "features": output.features,
    }
    return [float(value) for value in values[space][0]]


def test_class_strata_are_the_teachers_classes(tiny_model: MakeModel) -> None:
    teacher, images = tiny_model(TEACHER_SEED).eval(), make_images()
    strata = class_strata(teacher)(images)
    expected = []
    for image in images:
        logits = in_space(teacher, image, "logits")
        expected.append(logits.index(max(logits)))
    assert strata.tolist() == expected and set(expected) == {0, 1, 2}
    assert strata.dtype == torch.int64 and strata.device.type == "cpu"


@pytest.mark.parametrize("space", ["logits", "probabilities", "features"])
@pytest.mark.parametrize("batch", [7, 60])
def test_prototype_strata_are_the_nearest_prototypes(
    space: Space, batch: int, tiny_model: MakeModel
) -> None:
    teacher, images = tiny_model(TEACHER_SEED).eval(), make_images()
    rows = [in_space(teacher, image, space) for image in images]
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(5, len(rows[0]), generator=generator)
    prototypes = torch.tensor(rows)[::12] + 0.001 * noise
    expected = []
    for row in rows:
        distances = [
            sum((a - b) ** 2 for a, b in zip(row, z, strict=True)) for z in prototypes.tolist()
        ]
        expected.append(distances.index(min(distances)))
    assert len(set(expected)) == 5
    stratum_of = prototype_strata(teacher, prototypes, space=space)
    strata = torch.cat([stratum_of(part) for part in images.split(batch)])
    assert strata.tolist() == expected
    assert strata.dtype == torch.int64 and strata.device.type == "cpu"


def test_strata_of_the_pool_are_the_dictionarys_clusters(tiny_model: MakeModel) -> None:
    teacher, images = tiny_model(TEACHER_SEED).eval(), make_images(200)
    with torch.no_grad():
        logits = teacher(images).logits
    dictionary = build_dictionary(logits, num_prototypes=4, seed=0)
    assert dictionary.assignments_M is not None
    strata = prototype_strata(teacher, dictionary.prototypes_ND, space="logits")(images)
    counts = torch.bincount(strata, minlength=4) / 200
    # k-means may stop an image or two before every one is at its nearest mean.
    assert int((strata != dictionary.assignments_M).sum()) <= 4
    torch.testing.assert_close(counts, dictionary.proportions_N, atol=0.02, rtol=0)


def test_prototypes_far_off_and_close_together_are_told_apart() -> None:
    """By x^2 - 2 x z + z^2 in single precision all distances would be 0 or 64."""
    teacher = pixels_model()
    prototypes = 1e4 + torch.tensor([[0.0], [1.0], [2.0]]).expand(3, 64)
    images = 1e4 + torch.tensor([0.1, 1.2, 2.3, 0.9]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    images = images.repeat(10, 1, 1, 1)  # matrix products are used from 26 rows on
    strata = prototype_strata(teacher, prototypes, space="features")(images)
    assert strata.tolist() == [0, 1, 2, 1] * 10


@pytest.mark.parametrize("kind", ["classes", "prototypes"])
def test_the_teacher_stays_as_it_was_and_no_graph_is_kept(kind: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(TEACHER_SEED).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen: list[bool] = []
    teacher.register_forward_hook(lambda *args: seen.append(args[-1].logits.requires_grad))
    stratum_of = (
        class_strata(teacher)
        if kind == "classes"
        else prototype_strata(teacher, torch.eye(3), space="logits")
    )
    assert stratum_of(make_images()[:0]).shape == (0,)
    assert stratum_of(make_images(5)).shape == (5,)
    assert seen == [False, False]
    assert not teacher.training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


class TestDrawnProportions:
    def test_by_hand(self) -> None:
        """Strata of 6 and 2 rows are drawn alike: each row has 1/12 or 1/4 of the draws."""
        strata = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2])
        assignments = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
        got = drawn_proportions(assignments, strata)
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx([4 / 12, 2 / 12 + 1 / 4, 1 / 4])

    def test_at_a_cap_of_one_it_is_what_lies_in_the_pool(self) -> None:
        strata, assignments = torch.arange(12) // 7, torch.arange(12) % 5 % 3
        got = drawn_proportions(assignments, strata, max_repeats=1)
        assert got.tolist() == pytest.approx([5 / 12, 5 / 12, 2 / 12])

    def test_strata_that_are_the_prototypes_are_even(self) -> None:
        own = torch.tensor([0, 1, 1, 2, 2, 2, 2])
        assert drawn_proportions(own, own).tolist() == pytest.approx([1 / 3] * 3)

    @pytest.mark.parametrize("cap", [1.5, math.inf])
    def test_equals_the_share_of_many_draws(self, cap: float) -> None:
        generator = torch.Generator().manual_seed(0)
        strata = torch.randint(0, 16, (50,), generator=generator).float().sqrt().long()
        other = torch.randint(0, 4, (50,), generator=generator)
        assignments = torch.where(torch.rand(50, generator=generator) < 0.6, strata, other)
        rows = StratifiedRows(0, max_repeats=cap)
        rows.extend(strata)
        drawn = torch.cat([assignments[rows.next(100)] for _ in range(100)])
        expected = torch.bincount(drawn) / len(drawn)
        got = drawn_proportions(assignments, strata, max_repeats=cap)
        torch.testing.assert_close(got, expected, atol=0.01, rtol=0)
        in_the_pool = torch.bincount(assignments) / 50
        assert float((got - in_the_pool).abs().max()) > 0.03
