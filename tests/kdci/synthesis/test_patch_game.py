from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdci.errors import NumericError
from kdci.models import PixelModel, Prediction
from kdci.models.generators.generator import Generator
from kdci.synthesis.patch_game import PatchDiscriminator, PatchGame

WEIGHTS = {"local": 0.5, "align": 2.0, "balance": 3.0, "adversarial": 7.0}
MEAN, STD = (0.4,), (0.3,)


class TinyNet(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Prediction:
        features = torch.relu(self.norm(self.conv(images))).mean((2, 3))
        return Prediction(3 * self.head(features), features)


def make_net(seed: int) -> PixelModel:
    model = PixelModel(TinyNet(seed), mean=MEAN, std=STD)
    model(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    return model


def make_game(**weights: float) -> PatchGame:
    torch.manual_seed(4)
    return PatchGame(
        make_net(1).eval(),
        Generator(latent_dim=5, image_size=8, channels=1, width=3, large=True),
        PatchDiscriminator(channels=1, width=4),
        learning_rate=0.01,
        weights={**WEIGHTS, **weights},
    )


def draw(step: int) -> tuple[Tensor, Tensor]:
    """Return the latents and real images of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(6, 5, generator=generator), torch.rand(6, 1, 8, 8, generator=generator)


class NaiveGame:
    """The paper's step written out in probabilities, on a copy of a game's nets."""

    def __init__(self, game: PatchGame, student: PixelModel | None) -> None:
        self.generator = copy.deepcopy(game.generator)
        self.discriminator = copy.deepcopy(game.discriminator)
        self.teacher = copy.deepcopy(game.teacher)
        self.student = None if student is None else copy.deepcopy(student).eval()
        betas = (0.5, 0.999)
        self.of_generator = torch.optim.Adam(self.generator.parameters(), 0.01, betas)
        self.of_discriminator = torch.optim.Adam(self.discriminator.parameters(), 0.01, betas)

    def real_probabilities(self, images: Tensor) -> Tensor:
        """Return one for each patch, (images, patches)."""
        judged: Tensor = self.discriminator((images - 0.4) / 0.3)
        assert judged.shape == (6, 1, 2, 2)
        return torch.sigmoid(judged).flatten(1)

    def step(self, latents: Tensor, real: Tensor) -> dict[str, float]:
        made = self.generator(latents)
        of_made = -(1 - self.real_probabilities(made.detach())).log().sum()
        of_real = -self.real_probabilities(real).log().sum()
        discriminator = (of_made + of_real) / (2 * 6)
        self.of_discriminator.zero_grad()
        (0.5 * discriminator).backward()
        self.of_discriminator.step()

        local = -self.real_probabilities(made).log().sum() / 6
        p = torch.softmax(self.teacher(made).logits, 1)
        align, adversarial = torch.zeros(()), torch.zeros(())
        for row in range(6):
            align = align - (p[row] * p[row].log()).sum() / 6
        if self.student is not None:
            q = torch.softmax(self.student(made).logits, 1)
            for row in range(6):
                adversarial = adversarial - (p[row] * (p[row] / q[row]).log()).sum() / 6
        balance = torch.zeros(())
        for share in p.mean(0):
            balance = balance + share * torch.log2(share)
        total = 0.5 * local + 2.0 * align + 3.0 * balance + 7.0 * adversarial
        self.of_generator.zero_grad()
        total.backward()
        self.of_generator.step()
        terms = {
            "generator_loss": total,
            "discriminator": discriminator,
            "local": local,
            "align": align,
            "balance": balance,
            "adversarial": adversarial,
        }
        return {name: float(term.detach()) for name, term in terms.items()}


@pytest.mark.parametrize("with_student", [True, False])
def test_two_steps_equal_a_naive_implementation(with_student: bool) -> None:
    game, student = make_game(), make_net(2).train() if with_student else None
    naive = NaiveGame(game, student)
    for step in range(2):
        readings = game.step(*draw(step), student)
        expected = naive.step(*draw(step))
        assert readings.keys() == expected.keys()
        for name, value in readings.items():
            assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
        assert (readings["adversarial"] < -1e-3) is with_student
        for own, other in (
            (game.generator, naive.generator),
            (game.discriminator, naive.discriminator),
        ):
            for name, value in own.state_dict().items():
                torch.testing.assert_close(
                    value, other.state_dict()[name], rtol=1e-3, atol=2e-5, msg=name
                )
    assert game.steps == 2


def snapshot(*models: nn.Module) -> list[dict[str, Tensor]]:
    return [copy.deepcopy(model.state_dict()) for model in models]


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    now = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, now[name])}


def parameters_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_each_step_moves_its_own_net_and_leaves_no_gradient() -> None:
    game, student = make_game(), make_net(2).train()
    moved: list[set[str]] = []
    for name, optimizer in game._optimizers.items():

        def watched(plain: Callable[[], Any] = optimizer.step, name: str = name) -> None:
            nets = (game.generator, game.discriminator)
            before = snapshot(*nets)
            # At the moment of a step the other net has no gradient.
            other = game.discriminator if name == "generator" else game.generator
            own = game.generator if name == "generator" else game.discriminator
            assert all(weight.grad is None for weight in other.parameters())
            assert all(weight.grad is not None for weight in own.parameters())
            plain()
            moved.extend(changed(old, net) for old, net in zip(before, nets, strict=True))

        optimizer.step = watched  # type: ignore[assignment]
    game.step(*draw(0), student)
    nothing: set[str] = set()
    assert moved == [
        nothing,
        parameters_of(game.discriminator),
        parameters_of(game.generator),
        nothing,
    ]
    for net in (game.generator, game.discriminator):
        assert all(weight.grad is None for weight in net.parameters())
        assert all(weight.requires_grad for weight in net.parameters())
        assert all(module.training for module in net.modules())


def test_teacher_and_student_are_left_as_they_were() -> None:
    game, student = make_game(), make_net(2).train()
    student.backbone.norm.eval()
    student.backbone.head.bias.requires_grad_(False)
    weight = student.backbone.conv.weight
    weight.grad = torch.ones_like(weight)
    modes = [module.training for module in student.modules()]
    before = snapshot(game.teacher, student)
    for step in range(2):
        game.step(*draw(step), student)
    for old, model in zip(before, (game.teacher, student), strict=True):
        assert changed(old, model) == set()
    assert [module.training for module in student.modules()] == modes
    assert not any(module.training for module in game.teacher.modules())
    assert all(value.grad is None for value in game.teacher.parameters())
    graded = [name for name, value in student.named_parameters() if value.grad is not None]
    assert graded == ["backbone.conv.weight"] and bool((weight.grad == 1).all())
    fixed = [name for name, value in student.named_parameters() if not value.requires_grad]
    assert fixed == ["backbone.head.bias"]


def test_real_images_move_the_discriminator_alone() -> None:
    games = [make_game(), make_game()]
    latents, real = draw(0)
    games[0].step(latents, real, None)
    games[1].step(latents, 1 - real, None)
    first, second = (snapshot(game.discriminator)[0] for game in games)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    # With the local weight at 0, nothing of the discriminator reaches the generator.
    games = [make_game(local=0.0), make_game(local=0.0)]
    before = snapshot(games[0].discriminator)[0]
    games[0].step(latents, real, None)
    games[1].step(latents, 1 - real, None)
    discriminator = games[0].discriminator
    assert changed(before, discriminator).isdisjoint(parameters_of(discriminator))
    assert changed(snapshot(games[0].generator)[0], games[1].generator) == set()


@pytest.mark.parametrize("name", ["align", "balance", "adversarial"])
def test_a_term_goes_down_when_it_is_all_that_counts(name: str) -> None:
    zeros = dict.fromkeys(WEIGHTS, 0.0)
    game, student = make_game(**{**zeros, name: 1.0}), make_net(2).train()
    latents, real = draw(0)
    values = [game.step(latents, real, student)[name] for _ in range(15)]
    assert values[-1] < values[0] - 0.005


def test_the_discriminator_learns_to_tell_and_the_generator_to_fool() -> None:
    zeros = dict.fromkeys(WEIGHTS, 0.0)
    game = make_game(**{**zeros, "local": 1.0})
    latents, real = draw(0)
    apart = [game.step(latents, real, None, rate_factor=1.0)["discriminator"] for _ in range(3)]
    assert apart[-1] < apart[0]
    for group in game._optimizers["discriminator"].param_groups:
        group["initial_lr"] = 0.0
    fooled = [game.step(latents, real, None)["local"] for _ in range(10)]
    assert fooled[-1] < fooled[0]


def test_rates_follow_the_factor() -> None:
    game = make_game()
    before = snapshot(game.generator, game.discriminator)
    game.step(*draw(0), None, rate_factor=0.0)
    for old, net in zip(before, (game.generator, game.discriminator), strict=True):
        assert changed(old, net).isdisjoint(parameters_of(net))
    for factor in (0.25, 1.0):  # of the initial rate, not of the one before
        game.step(*draw(1), None, rate_factor=factor)
        rates = {each.param_groups[0]["lr"] for each in game._optimizers.values()}
        assert rates == {0.01 * factor}


def test_continues_bit_identically_from_a_copy(flatten: Callable[[object], object]) -> None:
    whole, student = make_game(), make_net(2)
    for step in range(2):
        whole.step(*draw(step), student)
    state = whole.state_dict()
    kept = flatten(state)
    expected = whole.step(*draw(2), student)
    assert flatten(state) == kept
    torn = make_game()
    torn.step(*draw(9), student)  # a past that is forgotten
    assert flatten(torn.state_dict()) != kept
    torn.load_state_dict(state)
    assert torn.step(*draw(2), student) == expected
    assert flatten(state) == kept
    assert flatten(torn.state_dict()) == flatten(whole.state_dict()) != kept


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    game = make_game(balance=float("inf"))
    with pytest.raises(NumericError, match=r"game step 1: .*generator_loss.* \(lower methods\.mos"):
        game.step(*draw(0), None)
