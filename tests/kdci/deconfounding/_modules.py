"""A small dictionary, a compensation module of it, logits to compensate, and phi in loops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdci.deconfounding.compensation import (
    Compensation,
)

K = 4
GENERATOR_SEED = 3


def make_dictionary(num_prototypes: int = 5, dimension: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    prototypes = 2 * torch.randn(num_prototypes, dimension, generator=generator)
    sizes = torch.randint(1, 50, (num_prototypes,), generator=generator).float()
    return prototypes, sizes / sizes.sum()


def make_module(*, dimension: int = K, **changes: Any) -> Compensation:
    prototypes, proportions = make_dictionary(dimension=dimension)
    options = {"num_classes": K, "hidden_dim": 6, "seed": 11, **changes}
    return Compensation(prototypes, proportions, **options)


def make_logits(batch: int = 7) -> Tensor:
    return 3 * torch.randn(batch, K, generator=torch.Generator().manual_seed(5))


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def apply(matrix: Tensor, vector: list[float]) -> list[float]:
    return [dot(row, vector) for row in matrix.double().tolist()]


def naive(
    module: Compensation, logits: Tensor, proportions: list[float], scale: float
) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Return lambda, F(z) and phi, written as the paper does, one sample at a time."""
    weights, priors, outputs = [], [], []
    w_q, w_k, w_t = (getattr(module, name).weight.detach() for name in ("w_q", "w_k", "w_t"))
    prototypes = module.prototypes_ND.double().tolist()
    for f in logits.double().tolist():
        scores = []
        for z in prototypes:
            pairs = zip(apply(w_q, f), apply(w_k, z), strict=True)
            (score,) = apply(w_t, [math.tanh(q + k) for q, k in pairs])
            scores.append(score)
        total = sum(math.exp(score) for score in scores)
        lambdas = [math.exp(score) / total for score in scores]
        prior = [
            scale * sum(lambdas[i] * z[d] * proportions[i] for i, z in enumerate(prototypes))
            for d in range(len(prototypes[0]))
        ]
        if module.fusion == "identity":
            added, base = prior, f
        else:
            added = apply(module.w_g.weight.detach(), prior)
            base = apply(module.w_h.weight.detach(), f) if module.fusion == "linear" else f
        weights.append(lambdas)
        priors.append(prior)
        outputs.append([b + a for b, a in zip(base, added, strict=True)])
    return weights, priors, outputs
