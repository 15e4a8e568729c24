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

from kdci.config import Params
from kdci.errors import KdciError, StoppedError, StorageError
from kdci.layout import Layout
from kdci.params_file import load_params
from stages._session import Session, StageIdentity, require_choice, require_writable
from stages._signals import StopFlag, die_with_parent

Cell = Mapping[str, str | int]

_GRID = {
    "teacher": "teachers",
    "student": "students",
    "method": "methods",
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
    """

    name: str
    axes: tuple[str, ...]
    blocks: tuple[str, ...]
    artifact: Callable[[Layout, Cell], Path]
    run: Callable[[Session], None]

    def keys(self, cell: Cell) -> list[str]:
        """Return the dotted params keys of one cell."""
        return [block.format(**cell) for block in self.blocks]


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
    variant = getattr(arguments, "variant", None)
    stage = next(s for s in stages if variant is None or s.name.endswith(variant))
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
        variants = [stage.name.split("_")[1] for stage in stages]
        parser.add_argument("--variant", choices=variants, required=True)
    for axis in stages[0].axes:
        kind = int if axis.endswith("seed") else str
        parser.add_argument(f"--{axis.replace('_', '-')}", type=kind, required=True)
    return parser


def _session(stage: Stage, arguments: argparse.Namespace, stop: StopFlag) -> Session:
    params: Params = load_params(arguments.params)
    layout = Layout(arguments.params.resolve().parent, params.preset)
    cell = {axis: getattr(arguments, axis) for axis in stage.axes}
    for axis, value in cell.items():
        # Controls are made by the methods' stages.
        values = params.grid.sources if axis == "method" else getattr(params.grid, _GRID[axis])
        require_choice(f"grid.{_GRID[axis]}", value, values)
    artifact = stage.artifact(layout, cell)
    require_writable(artifact.parent)
    require_writable(layout.work)
    identity = StageIdentity(stage.name, cell, params.blocks(*stage.keys(cell)), artifact)
    return Session(params, layout, identity, stop=stop)


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
