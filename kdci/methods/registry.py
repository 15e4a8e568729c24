"""The methods by name: the one place where a method's params block meets its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from kdci.config.methods import OVERRIDES
from kdci.methods.base import SourceContext, SubstitutionSource
from kdci.methods.cmi import CmiSource
from kdci.methods.dafl import DaflSource
from kdci.methods.deepinv import DeepInvSource
from kdci.methods.dfnd import DfndSource
from kdci.methods.fast import FastSource
from kdci.methods.mosaick import MosaickSource
from kdci.methods.noise import NoiseSource

Builder = Callable[..., SubstitutionSource]

METHODS: dict[str, Builder] = {
    "dafl": DaflSource,
    "fast": FastSource,
    "cmi": CmiSource,
    "deepinv": DeepInvSource,
    "mosaick": MosaickSource,
    "dfnd": DfndSource,
}
CONTROLS: dict[str, Builder] = {
    "noise": NoiseSource,
}


def build_source(method: str, block: BaseModel, context: SourceContext) -> SubstitutionSource:
    """Build a method's source from its params block.

    Args:
        method: Key of ``METHODS`` or of ``CONTROLS``.
        block: The method's block, of the pair; its fields are the source's keyword arguments,
            except `open_world`, which the context loads, and the overrides of other pairs.
        context: Teacher, dataset, bank and seed.

    Raises:
        ValueError: There is no such method.
        UserError: The method does not fit the teacher.
    """
    builders = METHODS | CONTROLS
    if method not in builders:
        raise ValueError(f"unknown method {method!r}, one of {sorted(builders)}")
    arguments: dict[str, Any] = {
        name: getattr(block, name)
        for name in type(block).model_fields
        if name not in ("open_world", *OVERRIDES)
    }
    return builders[method](context, **arguments)
