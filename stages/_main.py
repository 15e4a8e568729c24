"""The command line of a stage: arguments, params, exit codes. No stage's result depends on it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdci.config.params import Grid, Params
from kdci.config.params_file import load_params
from kdci.errors import KdciError, StoppedError, StorageError
from kdci.store.layout import Layout
from stages._session import Session, StageIdentity, require_choice, require_writable
from stages._signals import StopFlag, die_with_parent

Cell = Mapping[str, str | int]

_GRID = {
    "teacher": "teachers",
    "pool_seed": "pool_seeds",
    "seed": "seeds",
}


@dataclass(frozen=True)
class Stage:
    """How a stage is called and what it depends on.

    Attributes:
        name: Its name in dvc.yaml; `distill` adds the variant.
        axes: Names of its axes, in the order of dvc.yaml.
        blocks: The params blocks it depends on, as dotted keys; `{method}` stands for the
            cell's method.
        artifact: Where its result lies.
        run: The stage itself.
        arm: The arm that `--variant` chooses it by, where several stages share a file.
        for_other: Whether it also runs for the other model of Table 5, with `--other`.
    """

    name: str
    axes: tuple[str, ...]
    blocks: tuple[str, ...]
    artifact: Callable[[Layout, Cell], Path]
    run: Callable[[Session], None]
    arm: str | None = None
    for_other: bool = False

    def keys(self, cell: Cell, params: Params) -> list[str]:
        """Return the dotted params keys of one cell."""
        method = str(cell.get("method", ""))
        if method not in params.grid.shifts:
            return [block.format(**cell) for block in self.blocks]
        return [key for block in self.blocks for key in _keys_of_shift(block, method, params)]


def _keys_of_shift(block: str, shift: str, params: Params) -> list[str]:
    """Return what a block of a method is on a pool with a known shift."""
    return {
        "methods.{method}": ["shift", f"shifts.{shift}"],
        "recipes.{method}": [f"recipes.{params.base_of(shift)}"],
        "grid.arms": ["grid.shift_arms"],
        "grid.others": [],
    }.get(block, [block])


def main(stages: Sequence[Stage], argv: Sequence[str] | None = None) -> int:
    """Run one of ``stages`` (they share a file) as a process and return its exit code."""
    arguments = _parser(stages).parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Whatever in this process calls torch.load reads tensors and nothing else.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    stop = StopFlag()
    stop.install()
    die_with_parent(stop)
    stage = next(s for s in stages if s.arm == getattr(arguments, "variant", None))
    session: Session | None = None
    try:
        session = _session(stage, arguments, stop)
        with session.exclusive():
            stage.run(session)
        return 0
    except (KdciError, MemoryError, OSError) as error:
        return _leave(_worded(error), session, debug=arguments.debug)


def _parser(stages: Sequence[Stage]) -> argparse.ArgumentParser:
    name = stages[0].name.split("_")[0]
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", allow_abbrev=False)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file")
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    if len(stages) > 1:
        parser.add_argument("--variant", choices=[stage.arm for stage in stages], required=True)
    if stages[0].for_other:
        parser.add_argument(
            "--other", action="store_true", help="of the other model, whose dictionary is borrowed"
        )
    for axis in stages[0].axes:
        kind = int if axis.endswith("seed") else str
        parser.add_argument(f"--{axis.replace('_', '-')}", type=kind, required=True)
    return parser


def _session(stage: Stage, arguments: argparse.Namespace, stop: StopFlag) -> Session:
    load_params(arguments.params, methods=False)  # what is wrong elsewhere is told without torch
    params: Params = load_params(arguments.params)
    layout = Layout(arguments.params.resolve().parent, params.preset)
    name = stage.name
    if getattr(arguments, "other", False):
        require_choice("grid.others", arguments.teacher, params.grid.others)
        params, layout, name = params.of_other(), layout.other, f"{stage.name}_other"
    cell = {axis: getattr(arguments, axis) for axis in stage.axes}
    for axis, value in cell.items():
        key, values = _choices(params.grid, axis, cell)
        require_choice(key, value, values)
    if stage.arm is not None:
        key, arms = _arms_of(params.grid, str(cell["method"]))
        require_choice(key, stage.arm, arms)
    artifact = stage.artifact(layout, cell)
    require_writable(artifact.parent)
    require_writable(layout.work)
    identity = StageIdentity(name, cell, params.blocks(*stage.keys(cell, params)), artifact)
    return Session(params, layout, identity, stop=stop)


def _choices(
    grid: Grid, axis: str, cell: Mapping[str, str | int]
) -> tuple[str, Sequence[str | int]]:
    """Return the key of an axis in the grid and the values it has for a cell."""
    if axis == "method":  # controls and known shifts have pools as methods have
        return "grid.methods", grid.sources
    if axis == "student":
        students = [student for teacher, student in grid.all_pairs if teacher == cell["teacher"]]
        return "grid.pairs" if grid.pairs else "grid.students", students
    return f"grid.{_GRID[axis]}", getattr(grid, _GRID[axis])


def _arms_of(grid: Grid, method: str) -> tuple[str, Sequence[str]]:
    """Return the arms that the grid asks for on a pool, and the key that says so."""
    if method in grid.shifts:
        return "grid.shift_arms", grid.shift_arms
    return "grid.arms", grid.method_arms if method in grid.methods else ("vanilla",)


def _worded(error: Exception) -> KdciError:
    if isinstance(error, KdciError):
        return error
    if isinstance(error, MemoryError):
        return StorageError("memory", "there is not enough", "lower the batch sizes")
    if isinstance(error, OSError):
        place = str(error.filename or "file system")
        return StorageError(place, error.strerror or str(error), "mend it and run again")
    raise error


def _leave(error: KdciError, session: Session | None, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    lines = error.lines()
    exit_code = error.stop_code if isinstance(error, StoppedError) else error.exit_code
    sys.stderr.write("\n".join(lines) + "\n")
    if session is not None:
        session.record_failure(exit_code=exit_code, message=lines[0])
    return exit_code
