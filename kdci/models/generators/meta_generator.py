"""The generator that Fast learns across calls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdci.models.generators.generator import ADAM_BETAS, LatentGenerator, reset_parameters_
from kdci.models.states import Stateful
from kdci.training.optimizers import Adam, Moments

MetaUpdate = Literal["fomaml", "reptile", "none"]


class MetaGenerator(Stateful):
    """The generator that learns across calls, with the optimiser of its meta step.

    Args:
        generator: Its weights are the starting point of every call.
        learning_rate: Adam rate of the meta step.
        update: ``fomaml``: the adapted copy's gradients of all inner steps, summed;
            ``reptile``: the direction from the adapted weights; ``none``: no meta step,
            each call adapts the shared weights themselves.
        reptile_scale: Factor on Reptile's direction. Adam hardly sees it: it only lifts
            the direction over Adam's epsilon.
    """

    kept = ("generator", "_moments")

    def __init__(
        self,
        generator: LatentGenerator,
        *,
        learning_rate: float,
        update: MetaUpdate,
        reptile_scale: float,
    ) -> None:
        self.generator = generator
        self.update = update
        self.reptile_scale = reptile_scale
        self._optimizer = Adam(generator.parameters(), lr=learning_rate, betas=ADAM_BETAS)
        self._moments = Moments(self._optimizer)

    def start(self) -> LatentGenerator:
        """Return the generator that one call adapts."""
        return self.generator if self.update == "none" else copy.deepcopy(self.generator)

    def learn(self, adapted: LatentGenerator, summed_gradients: Sequence[Tensor]) -> None:
        """Take one meta step.

        Args:
            adapted: What ``start`` returned, after the inner steps.
            summed_gradients: Sum over the inner steps of the gradient of each parameter.
        """
        if self.update == "none":
            return
        weights = list(self.generator.parameters())
        if self.update == "fomaml":
            gradients = list(summed_gradients)
        else:
            pairs = zip(weights, adapted.parameters(), strict=True)
            gradients = [self.reptile_scale * (meta - fast).detach() for meta, fast in pairs]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()

    def reset_first_layer(self, random: torch.Generator) -> None:
        """Start the linear layer and its BatchNorm anew, and Adam's moments of both."""
        for layer in (self.generator.linear, self.generator.norm):
            reset_parameters_(layer, random)
            for weight in layer.parameters():
                self._optimizer.state.pop(weight, None)
