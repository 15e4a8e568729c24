"""Where each artifact of an experiment lies, and which cells an experiment has.

``dvc.yaml`` spells the same paths; a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from kdci.config.params import Grid


@dataclass(frozen=True, order=True)
class Cell:
    """One student with its evaluation: a point of the grid.

    Attributes:
        method: Of the pool: a method, a control or a known shift.
        variant: The arm; see ``kdci.deconfounding.arms``.
    """

    teacher: str
    student: str
    method: str
    variant: str
    pool_seed: int
    seed: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cell:
        """Return the cell that a student's facts, or a row of results, are of.

        Raises:
            KeyError: A value is missing.
        """
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def name(self) -> str:
        """Readable name, unique within an experiment."""
        return f"{self.teacher}/{self.student}/{self.method}/{self.variant}/{self.replicate}"

    @property
    def replicate(self) -> str:
        """Name of the repetition: pool seed and student seed."""
        return f"pool{self.pool_seed}-seed{self.seed}"

    def asdict(self) -> dict[str, str | int]:
        """Return the fields as a plain dict."""
        return asdict(self)


def cells(grid: Grid) -> list[Cell]:
    """Return every method's cells, vanilla first, in the order of its lists."""
    return _product(grid, grid.methods, grid.method_arms)


def shift_cells(grid: Grid) -> list[Cell]:
    """Return the cells of the pools with a known shift."""
    return _product(grid, grid.shifts, grid.shift_arms)


def control_cells(grid: Grid) -> list[Cell]:
    """Return the controls' cells: one vanilla student a pair, of the first seeds."""
    first = grid.model_copy(update={"pool_seeds": grid.pool_seeds[:1], "seeds": grid.seeds[:1]})
    return _product(first, grid.controls, ["vanilla"])


def _product(grid: Grid, pools: Sequence[str], arms: Sequence[str]) -> list[Cell]:
    axes = product(grid.all_pairs, pools, arms, grid.pool_seeds, grid.seeds)
    return [Cell(*pair, pool, arm, pool_seed, seed) for pair, pool, arm, pool_seed, seed in axes]


def all_cells(grid: Grid) -> list[Cell]:
    """Return the cells of the methods, then those of the controls and of the known shifts."""
    return [*cells(grid), *control_cells(grid), *shift_cells(grid)]


@dataclass(frozen=True)
class Layout:
    """Paths of one experiment below a project folder.

    Attributes:
        root: The project folder: where params.yaml and dvc.yaml are.
        preset: Name of the experiment.
        branch: Folder below it of a pipeline of its own, as the other model's is; "" for none.
    """

    root: Path
    preset: str
    branch: str = ""

    @property
    def other(self) -> Layout:
        """Places of the other model's pipeline, which ends in its dictionaries."""
        return replace(self, branch="other")

    @property
    def artifacts(self) -> Path:
        """Folder of the experiment's artifacts."""
        return self.root / "artifacts" / self.preset / self.branch

    @property
    def report(self) -> Path:
        """Folder of the report of the current params."""
        return self.root / "report"

    @property
    def work(self) -> Path:
        """Folder of locks, checkpoints and unfinished output; never tracked."""
        return self.root / ".kdci"

    @property
    def formats(self) -> Path:
        """Folder of what networks were found to be fastest in, on this machine."""
        return self.work / "formats"

    def relative(self, path: Path) -> str:
        """Return a path of the project as text, relative to the project folder."""
        return path.relative_to(self.root).as_posix()

    def teacher(self, teacher: str) -> Path:
        """Return the folder of a trained teacher."""
        return self.artifacts / "teachers" / teacher

    def pool(self, teacher: str, method: str, pool_seed: int) -> Path:
        """Return the folder of a substitution pool."""
        return self.artifacts / "pools" / teacher / method / f"pool{pool_seed}"

    def dictionary(self, teacher: str, method: str, pool_seed: int) -> Path:
        """Return the folder of a confounder dictionary."""
        return self.artifacts / "dictionaries" / teacher / method / f"pool{pool_seed}"

    def students(self, teacher: str, student: str, method: str) -> Path:
        """Return the folder that holds all students of a pair and a method."""
        return self.artifacts / "students" / teacher / student / method

    def student(self, cell: Cell) -> Path:
        """Return the folder of a distilled student."""
        folder = self.students(cell.teacher, cell.student, cell.method)
        return folder / cell.variant / cell.replicate

    def evaluation(self, teacher: str, student: str, method: str) -> Path:
        """Return the folder of the evaluation of a pair and a method."""
        return self.artifacts / "evaluations" / teacher / student / method

    def timing(self, artifact: Path) -> Path:
        """Return the file of an artifact's wall times, which no hash may depend on."""
        if not artifact.is_relative_to(self.artifacts):  # the report
            return self.artifacts / "timings" / f"{artifact.name}.json"
        relative = artifact.relative_to(self.artifacts)
        return self.artifacts / "timings" / relative.with_name(relative.name + ".json")
