"""Turns another library's classifier into a backbone, its parameters keeping their names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kdci.models.pixel_model import Prediction

# torchvision's and timm's stochastic depth, each with its probability. Known by their names:
# the libraries take seconds to import.
_BY_CHANCE = {"StochasticDepth": "p", "DropPath": "drop_prob"}


class PredictingLinear(nn.Linear):
    """A last linear layer that also returns what it reads.

    Where it stands last, the whole network returns a ``Prediction``. No hook is needed, which
    an exported graph would lose, and the parameters keep the names that the network's own
    checkpoints have.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> PredictingLinear:
        """Return a layer with the very parameters of ``linear``."""
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, features_BD: Tensor) -> Prediction:  # type: ignore[override]
        """Map features (B, D) to logits (B, K), both of which are returned."""
        return Prediction(super().forward(features_BD), features_BD)


def last_linear(network: nn.Module) -> nn.Linear | None:
    """Return the linear layer that a network defines last, if it has any."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return layers[-1] if layers else None


def predict_with_(network: nn.Module, linear: nn.Linear) -> nn.Module:
    """Make ``linear``, a layer of ``network``, return a ``Prediction``; return the network."""
    name = next(name for name, layer in network.named_modules() if layer is linear)
    network.set_submodule(name, PredictingLinear.of(linear))
    return network


def set_channels_(network: nn.Module, channels: int) -> nn.Module:
    """Give a network's first convolution another number of input channels; return the network.

    The new weights are normal, of the deviation that the network's own had.

    Raises:
        ValueError: If there is no convolution, or the first one can not be replaced.
    """
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, old = next(convolutions, (None, None))
    if name is None or old is None or old.groups != 1:
        raise ValueError(f"its first layer does not take {channels} channels")
    if old.in_channels == channels:
        return network
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    with torch.no_grad():
        new.weight.normal_().mul_(old.weight.std())
    new.bias = old.bias
    network.set_submodule(name, new)
    return network


def without_chance_(network: nn.Module) -> nn.Module:
    """Turn dropout and stochastic depth off; return the network.

    They draw from the process's global stream, which no seed of a run decides and no
    checkpoint keeps: a resumed run would end elsewhere than one that never stopped.
    """
    for module in network.modules():
        attribute = "p" if isinstance(module, _DropoutNd) else _BY_CHANCE.get(type(module).__name__)
        if attribute is not None:
            setattr(module, attribute, 0.0)
    return network
