from __future__ import annotations

from pathlib import Path

import pytest

from tests.kdci.exporting._experiment import Experiment, compensation


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """A student with all that belongs to it."""
    made = Experiment(tmp_path / "project")
    made.write_teacher()
    made.write_pool()
    made.write_dictionary()
    made.write_student(compensation())
    made.write_evaluation()
    return made
