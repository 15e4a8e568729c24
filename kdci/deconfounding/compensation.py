"""Bias compensation: lambda_i, the prior information F(z), and phi.

KDCI (CVPR 2024), "Knowledge Distillation with Bias Compensation":

    lambda_i = softmax_i( W_t tanh( W_q f_S(x) + W_k z_i ) )
    F(z)     = sum_i lambda_i z_i P(z_i)                                              Eq. (4)
    P(S | do(X)) = phi( f_S(x), F(z) )

The ablations of Table 4 replace one factor each and are plain values here.
"""

# B = batch, N = prototypes, D = dimension of a prototype, K = classes, A = attention width

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kdci.deconfounding.additive_attention import additive_scores
from kdci.errors import UserError

Fusion = Literal["identity", "residual", "linear"]
Weights = Literal["learned", "random"]
Prototypes = Literal["kmeans", "random"]
Proportions = Literal["cluster", "uniform", "none", "centred", "log"]
Initialisation = Literal["normal", "zero"]
Scale = Literal["N", "shift"]

_EVAL_SEED = 0
"""Random lambda (Table 4) is drawn from this seed in eval mode, so that scores repeat."""


def prior_information(weights_BN: Tensor, prototypes_ND: Tensor, proportions_N: Tensor) -> Tensor:
    """Return F(z) = sum_i lambda_i z_i P(z_i), Eq. (4).

    Args:
        weights_BN: lambda_i of each sample; (B, N).
        prototypes_ND: z_i; (N, D).
        proportions_N: P(z_i); (N,).

    Returns:
        F(z) of each sample; (B, D).
    """
    return (weights_BN * proportions_N) @ prototypes_ND


def random_prototypes(prototypes_ND: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return normal prototypes with the mean and standard deviation of ``prototypes_ND``."""
    noise_ND = torch.randn(prototypes_ND.shape, generator=generator)
    return prototypes_ND.mean() + prototypes_ND.std() * noise_ND


def proportion_factors(proportions_N: Tensor, mode: Proportions) -> Tensor:
    """Return the factor that stands for P(z_i) in F(z); (N,).

    `cluster` is P(z_i) itself, `uniform` 1/N, `none` drops the factor (Table 4, "w/o P(z)"),
    `centred` is P(z_i) - 1/N and `log` is log(N P(z_i)): both add nothing where the pool is
    balanced. With even lambda over prototypes in logits, `log` adds to each class about what logit
    adjustment does (Menon et al., ICLR 2021), and lambda makes it depend on the image.
    """
    uniform_N = torch.full_like(proportions_N, 1 / len(proportions_N))
    factors = {
        "cluster": proportions_N,
        "uniform": uniform_N,
        "none": torch.ones_like(proportions_N),
        "centred": proportions_N - uniform_N,
        "log": (proportions_N / uniform_N).log(),
    }
    return factors[mode]


def prior_scale(proportions_N: Tensor, scale: float | Scale) -> float:
    """Return the factor on F(z).

    lambda and P are each about 1/N, so that F(z) is about 1/N of a prototype: `N` makes up for it.
    `shift` is N times the total-variation distance of P(z) from uniform, 0 to 1 - 1/N: as much
    compensation as the pool's proportions are shifted, none where they are even.
    """
    num_prototypes = len(proportions_N)
    if scale == "N":
        return float(num_prototypes)
    if scale == "shift":
        return num_prototypes * float((proportions_N - 1 / num_prototypes).abs().sum() / 2)
    return float(scale)


class Compensation(nn.Module):
    """phi(f_S, F(z)): the student's logits, compensated.

    The dictionary is held in buffers. The module's weights are drawn from a generator of their
    own, so that a student with and one without it start from the same weights and meet the
    same batches.

    Args:
        prototypes_ND: z_i; (N, D).
        proportions_N: P(z_i); (N,).
        num_classes: K.
        fusion: phi: `identity` f + F (needs D = K), `residual` f + W_g F, `linear`
            W_h f + W_g F.
        scale: Factor on F(z): a number, `N` or `shift`; see ``prior_scale``.
        hidden_dim: A, width of the additive attention.
        weights: `learned`, or `random`: softmax of fresh standard-normal scores (Table 4, 2).
        prototypes: `kmeans`, or `random` (Table 4, 3).
        proportions: See ``proportion_factors`` (Table 4, 4).
        initialisation: Of the weights: `normal` (Xavier), or `zero` for W_t and W_g: lambda starts
            even, and `residual` with nothing added.
        seed: Seed of the initial weights and of the random ablations.

    Raises:
        UserError: `identity` with a dictionary whose dimension is not K.
        ValueError: An unknown choice.
    """

    prototypes_ND: Tensor
    factors_N: Tensor
    scale: Tensor

    def __init__(
        self,
        prototypes_ND: Tensor,
        proportions_N: Tensor,
        *,
        num_classes: int,
        fusion: Fusion = "identity",
        scale: float | Scale = 1.0,
        hidden_dim: int = 64,
        weights: Weights = "learned",
        prototypes: Prototypes = "kmeans",
        proportions: Proportions = "cluster",
        initialisation: Initialisation = "normal",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require("initialisation", initialisation, get_args(Initialisation))
        _require("fusion", fusion, get_args(Fusion))
        _require("weights", weights, get_args(Weights))
        _require("prototypes", prototypes, get_args(Prototypes))
        _require("proportions", proportions, get_args(Proportions))
        dimension = prototypes_ND.shape[1]
        if fusion == "identity" and dimension != num_classes:
            raise UserError(
                "compensation.fusion",
                f"identity needs prototypes of {num_classes} values, these have {dimension}",
                "use residual",
            )
        self.fusion = fusion
        self.weights = weights
        self._prototypes, self._proportions, self._scale = prototypes, proportions, scale
        self._noise_seed = seed + 1  # not the module's stream: its weights are those of `kmeans`
        self._generator = torch.Generator().manual_seed(seed)
        for name in ("prototypes_ND", "factors_N", "scale"):
            self.register_buffer(name, torch.empty(0))
        self.set_dictionary(prototypes_ND, proportions_N)
        self.w_q = self._linear(num_classes, hidden_dim)
        self.w_k = self._linear(dimension, hidden_dim)
        self.w_t = self._linear(hidden_dim, 1)
        if fusion != "identity":
            self.w_g = self._linear(dimension, num_classes)
        if fusion == "linear":
            self.w_h = self._linear(num_classes, num_classes)
        if initialisation == "zero":
            nn.init.zeros_(self.w_t.weight)
            if fusion != "identity":
                nn.init.zeros_(self.w_g.weight)

    def set_dictionary(self, prototypes_ND: Tensor, proportions_N: Tensor) -> None:
        """Use another Z from now on, as when it is built anew from a pool that has grown.

        Args:
            prototypes_ND: z_i; (N, D), D as before.
            proportions_N: P(z_i); (N,).
        """
        device = self.scale.device
        if self._prototypes == "random":
            noise = torch.Generator().manual_seed(self._noise_seed)
            prototypes_ND = random_prototypes(prototypes_ND, generator=noise)
        self.prototypes_ND = prototypes_ND.detach().clone().to(device)
        self.factors_N = proportion_factors(proportions_N, self._proportions).clone().to(device)
        self.scale = torch.tensor(prior_scale(proportions_N, self._scale), device=device)

    def _linear(self, inputs: int, outputs: int) -> nn.Linear:
        # Without a draw from the global stream. `to_empty` would import sympy, for half a second.
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.xavier_normal_(layer.weight, generator=self._generator)
        return layer

    def scores(self, student_logits_BK: Tensor) -> Tensor:
        """Return the additive-attention scores W_t tanh(W_q f_S + W_k z_i); (B, N)."""
        return additive_scores(
            student_logits_BK,
            self.prototypes_ND,
            self.w_t.weight[0],
            w_q_AK=self.w_q.weight,
            w_k_AD=self.w_k.weight,
        )

    def attention(self, student_logits_BK: Tensor) -> Tensor:
        """Return lambda_i of each sample, summing to 1 over the prototypes; (B, N)."""
        if self.weights == "random":
            return self._random_scores(student_logits_BK).softmax(dim=1)
        return self.scores(student_logits_BK).softmax(dim=1)

    def _random_scores(self, student_logits_BK: Tensor) -> Tensor:
        shape = (student_logits_BK.shape[0], self.prototypes_ND.shape[0])
        source = self._generator if self.training else torch.Generator().manual_seed(_EVAL_SEED)
        return torch.randn(shape, generator=source).to(student_logits_BK.device)

    def prior(self, student_logits_BK: Tensor) -> Tensor:
        """Return F(z), scaled; (B, D)."""
        weights_BN = self.attention(student_logits_BK)
        return self.scale * prior_information(weights_BN, self.prototypes_ND, self.factors_N)

    def forward(self, student_logits_BK: Tensor) -> Tensor:
        """Return phi(f_S, F(z)).

        Args:
            student_logits_BK: f_S(x); (B, K).

        Returns:
            The compensated logits; (B, K).
        """
        prior_BD = self.prior(student_logits_BK)
        if self.fusion == "identity":
            return student_logits_BK + prior_BD
        base_BK = self.w_h(student_logits_BK) if self.fusion == "linear" else student_logits_BK
        compensated_BK: Tensor = base_BK + self.w_g(prior_BD)
        return compensated_BK

    @torch.no_grad()
    def describe(self, student_logits_BK: Tensor) -> dict[str, float]:
        """Return how the module acts on a batch: mean largest lambda, mean norm of F(z)."""
        if self.weights == "random":
            return {}  # a look must not draw from the stream that training draws from
        weights_BN = self.attention(student_logits_BK)
        prior_BD = self.prior(student_logits_BK)
        return {
            "lambda_max": float(weights_BN.max(dim=1).values.mean()),
            "prior_norm": float(prior_BD.norm(dim=1).mean()),
        }

    def shape(self) -> dict[str, Any]:
        """Return what an equal module is built from before its state is loaded."""
        num_prototypes, dimension = self.prototypes_ND.shape
        return {
            "num_prototypes": num_prototypes,
            "dimension": dimension,
            "fusion": self.fusion,
            "weights": self.weights,
            "hidden_dim": self.w_q.out_features,
        }

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take the number of prototypes from the state: a rebuilt dictionary may have fewer."""
        for name in ("prototypes_ND", "factors_N"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and saved.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """Return the state of the random stream, so that a resumed run draws on."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take the random stream up where ``get_extra_state`` left it."""
        self._generator.set_state(state.cpu())


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}, one of {sorted(allowed)}")
