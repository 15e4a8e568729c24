"""The command line of a stage: its cell, params, exit codes. No stage's result depends on it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from kdci.config.params_file import load_params
from kdci.errors import KdciError, StoppedError, StorageError
from kdci.graph.build import graph_of
from kdci.graph.cells import require_current, sources_of
from kdci.graph.node import require_cell_name
from stages.session import Session, require_writable
from stages.signals import StopFlag, die_with_parent

UNDER_DVC = "DVC_STAGE"
"""Variable that DVC, and whoever stands in for it, sets for the commands that it records."""


def main(stage: str, run: Callable[[Session], None], argv: Sequence[str] | None = None) -> int:
    """Run a stage for one of its cells as a process and return its exit code.

    Args:
        stage: Its name; see ``kdci.graph.node.KINDS``.
        run: The stage itself.
        argv: The command line; None: that of the process.
    """
    arguments = _parser(stage).parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Whatever in this process calls torch.load reads tensors and nothing else.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    stop = StopFlag()
    stop.install()
    die_with_parent(stop)
    session: Session | None = None
    try:
        session = _session(stage, arguments, stop)
        with session.exclusive():
            run(session)
        return 0
    except (KdciError, MemoryError, OSError) as error:
        return _leave(_worded(error), session, debug=arguments.debug)


def _parser(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}", allow_abbrev=False)
    if stage != "report":
        parser.add_argument("cell", help="one of the stage's cells in cells.yaml")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file")
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    return parser


def _session(stage: str, arguments: argparse.Namespace, stop: StopFlag) -> Session:
    cell = require_cell_name(arguments.cell) if stage != "report" else ""
    params = load_params(arguments.params, methods=False)  # other mistakes are told without torch
    if stage != "report":  # it needs neither the methods' blocks nor torch
        params = load_params(arguments.params)
    graph = graph_of(params, arguments.params.resolve().parent)
    node = graph.node(stage, cell)
    sources = sources_of(graph)
    code = sources.fingerprint(node.code)
    if UNDER_DVC in os.environ:
        require_current(graph, node, code)
    require_writable(node.artifact.parent)
    require_writable(graph.layout.work)
    sources.remember()
    return Session(graph, node, code, stop=stop)


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
