"""Classifiers of other libraries by name: ``torchvision-NAME`` and ``timm-NAME``.

They are built by their own constructors, untrained; nothing is ever downloaded.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdci.errors import UserError
from kdci.models.pixel_model import Prediction
from kdci.models.predicting import last_linear, predict_with_, set_channels_, without_chance_

# Arguments without which a network would have more outputs than one, or warn.
_TORCHVISION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build_foreign(
    name: str, *, num_classes: int, channels: int, image_size: int | None = None
) -> nn.Module:
    """Return a freshly initialised classifier of torchvision or timm.

    Dropout and stochastic depth are off, see ``without_chance_``.

    Args:
        name: ``torchvision-NAME`` or ``timm-NAME``, as ``kdci.config.catalog.is_backbone`` has it.
        num_classes: Number of classes K.
        channels: Number of image channels C.
        image_size: Side of the images in pixels. If given, it is made sure that the network
            takes them; networks that are built for one size need it.

    Returns:
        The network; it maps normalised images (B, C, H, W) to a ``Prediction``. Its
        parameters have the names that they have in the library.

    Raises:
        UserError: The library is not installed or knows no such classifier, or the classifier
            has no single linear layer at its end, or does not take such images.
    """
    library, _, own_name = name.partition("-")
    build = {"torchvision": _torchvision, "timm": _timm}[library]
    try:
        network, head = build(name, own_name, num_classes, channels, image_size)
        if head is None or head.out_features != num_classes:
            raise UserError(name, "does not end in one linear layer", "choose another backbone")
        predict_with_(without_chance_(network), head)
        if image_size is not None:
            _try(network, (2, channels, image_size, image_size), num_classes)
    except UserError:
        raise
    except Exception as error:
        # Whatever another library's constructor meets when the images do not fit.
        size = "" if image_size is None else f" of {image_size} px"
        what = f"can not be built for images{size} with {channels} channels: {_first_line(error)}"
        raise UserError(name, what, "choose another backbone") from error
    return network


def _torchvision(
    name: str, own_name: str, num_classes: int, channels: int, image_size: int | None
) -> tuple[nn.Module, nn.Linear | None]:
    from torchvision import models  # seconds to import

    _require_known(name, own_name, models.list_models(module=models), "torchvision")
    arguments = dict(_TORCHVISION_ARGUMENTS.get(own_name, {}))
    if own_name.startswith("vit_"):
        arguments["image_size"] = _fixed(name, image_size)
    if own_name.startswith("maxvit_"):
        arguments["input_size"] = (_fixed(name, image_size),) * 2
    network: nn.Module = models.get_model(
        own_name, weights=None, num_classes=num_classes, **arguments
    )
    return set_channels_(network, channels), last_linear(network)


def _timm(
    name: str, own_name: str, num_classes: int, channels: int, image_size: int | None
) -> tuple[nn.Module, nn.Linear | None]:
    timm = _import_timm(name)
    _require_known(name, own_name, timm.list_models(), "timm")
    arguments = {"pretrained": False, "num_classes": num_classes, "in_chans": channels}
    if timm.get_pretrained_cfg(own_name).fixed_input_size:
        arguments["img_size"] = _fixed(name, image_size)
    network = timm.create_model(own_name, **arguments)
    # Encoders without a classifier are among timm's models.
    head = network.get_classifier() if hasattr(network, "get_classifier") else None
    return network, head if isinstance(head, nn.Linear) else None


def _import_timm(name: str) -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            name, "needs timm, which is not installed", "pip install 'kdci[timm]'"
        ) from error


def _require_known(name: str, own_name: str, known: list[str], library: str) -> None:
    if own_name not in known:
        close = get_close_matches(own_name, known, n=1)
        fix = f"did you mean {library}-{close[0]}?" if close else f"see the models of {library}"
        raise UserError(name, f"{library} has no classifier of this name", fix)


def _fixed(name: str, image_size: int | None) -> int:
    if image_size is None:
        raise UserError(name, "is built for one image size", "say image_size")
    return image_size


def _try(network: nn.Module, images_shape: tuple[int, ...], num_classes: int) -> None:
    """Pass images through, in shape alone: nothing is computed and no state changes.

    Raises:
        Exception: The network does not take them or does not return a ``Prediction``.
    """
    state: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    images = torch.empty(images_shape, device="meta")
    was_training = network.training
    found: object = None
    # A network that goes on computing with its last layer's answer gets a pair there.
    with torch.no_grad(), suppress(TypeError, AttributeError):
        found = functional_call(network.eval(), shapes, images)
    network.train(was_training)
    if not (
        isinstance(found, Prediction)
        and found.logits.shape == (images_shape[0], num_classes)
        and found.features.dim() == 2
    ):
        raise ValueError("its last linear layer is not its answer")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
