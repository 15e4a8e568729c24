"""Data that scikit-learn brings along, read without importing it.

The import takes two to three seconds, SciPy's statistics and pandas among them: more than all
else that a stage does before its first step, torch aside.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from kdci.errors import UserError


def bundled_file(name: str) -> Path:
    """Return the path of a file of scikit-learn's package.

    Args:
        name: Relative to the package, with slashes.

    Raises:
        UserError: The installed scikit-learn has no such file.
    """
    spec = find_spec("sklearn")
    file = Path((spec and spec.origin) or "").parent / name
    if not file.is_file():
        fix = "install it as pyproject.toml asks"
        raise UserError("scikit-learn", f"there is no {name} in it", fix)
    return file
