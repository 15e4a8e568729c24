"""One way of doing a case in a process of its own, which acts when it is told to.

Allocator, threads and caches are a way's own, as they would be in a run: in one process a baseline
would find the memory that this project keeps (``kdci.training.host_memory``), and the project what
the baseline has grown.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from benchmarks.catalogue import step_cases
from benchmarks.interleaved import Taken, take
from benchmarks.place import Place
from kdci.config.params import Runtime as Settings
from kdci.training.runtime import Runtime, start

PLAIN = "plain"
"""The way of the references, to which the allocator stays as it comes."""
_FORKS = multiprocessing.get_context("forkserver")
# The server has imported everything and computed nothing: what it forks starts at once, and clean.
_FORKS.set_forkserver_preload([__name__])


class WayProcess:
    """See the module's docstring; from ``opened``.

    Attributes:
        formats: What each of its networks computes in.
    """

    def __init__(self, way: str, told: Connection) -> None:
        self._way, self._told = way, told
        self.formats: dict[str, str] = self._answer()

    def act(self) -> Taken:
        """Do the work once.

        Raises:
            RuntimeError: The process has ended; why is on its standard error, which is this one's.
        """
        with suppress(OSError):  # the answer tells
            self._told.send(None)
        return Taken(*self._answer())

    def _answer(self) -> Any:
        try:
            return self._told.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the process of '{self._way}' has ended") from None


@contextmanager
def opened(
    key: str,
    ways: Sequence[str],
    settings: Settings,
    decided: Path,
    *,
    quick: bool,
    keep_memory: bool = True,
) -> Iterator[Mapping[str, WayProcess]]:
    """Have a process for each way of a case, ready to act; they end with the block.

    Args:
        key: Of the case.
        ways: Names; started in this order, one after the other, so that nothing computes beside
            the format probe of one.
        settings: Of every process.
        decided: Folder of what the format probe has decided.
        quick: Whether it is a small case.
        keep_memory: Whether ways other than the baseline keep what a step frees.

    Raises:
        RuntimeError: One does not get ready.
    """
    with ExitStack() as stack:
        processes: dict[str, WayProcess] = {}
        for way in ways:
            told, tell = _FORKS.Pipe()
            kept = keep_memory and way != PLAIN
            arguments = (tell, key, way, settings, decided, quick, kept)
            process = _FORKS.Process(target=_serve, args=arguments)
            process.start()
            tell.close()
            stack.callback(_end, process, told)
            processes[way] = WayProcess(way, told)
        yield processes


def _end(process: ForkServerProcess, told: Connection) -> None:
    told.close()  # which ends it
    process.join()


def _serve(
    tell: Connection,
    key: str,
    way: str,
    settings: Settings,
    decided: Path,
    quick: bool,
    keep_memory: bool,
) -> None:
    """Build one way, say so, and act as often as is asked for."""
    runtime = started(settings, keep_memory=keep_memory)
    (case,) = [case for case in step_cases(quick=quick) if case.key == key]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(runtime, Path(folder), case.num_images, settings, decided)
        action = case.ways[way](place)
        tell.send(place.formats)
        with suppress(EOFError):
            while True:
                tell.recv()
                tell.send(take(action, runtime.device))
        del action  # ends the workers that read the folder


def started(settings: Settings, *, keep_memory: bool) -> Runtime:
    """Set up torch for this process by the params block `runtime`."""
    return start(
        device=settings.device,
        threads=settings.threads,
        precision=settings.precision,
        memory_format=settings.memory_format,
        keep_memory=keep_memory,
    )
