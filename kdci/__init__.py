"""Data-free knowledge distillation with a de-confounded student (KDCI, CVPR 2024).

The public names load torch when they are first used, so that ``import kdci`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdci.deconfounding.compensation import Compensation as Compensation
    from kdci.deconfounding.confounder import ConfounderDictionary as ConfounderDictionary
    from kdci.deconfounding.confounder import build_dictionary as build_dictionary
    from kdci.models.students import load_student as load_student

_HOMES = {
    "Compensation": "kdci.deconfounding.compensation",
    "ConfounderDictionary": "kdci.deconfounding.confounder",
    "build_dictionary": "kdci.deconfounding.confounder",
    "load_student": "kdci.models.students",
}
__all__ = ["Compensation", "ConfounderDictionary", "build_dictionary", "load_student"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kdci' has no attribute {name!r}")
