"""What a foreign checkpoint may cost, and the limits of the process that reads it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MIB = 2**20
MAX_FILE_BYTES = 4096 * MIB
"""The largest classifiers of torchvision have 2.5 GB."""
MAX_PICKLE_BYTES = 64 * MIB
"""A state dict's own pickle holds names and shapes alone: some hundred bytes a tensor."""
MAX_ENTRIES = 20_000
"""Members of an archive, and tensors of a state dict."""
MAX_NAME_LENGTH = 256
MAX_REPORT_BYTES = MIB
CPU_SECONDS = 600
WALL_SECONDS = 900.0
_SPARE_BYTES = 512 * MIB
"""Address space for what reading itself needs, beside the file and its tensors."""


def limit_process() -> None:
    """Bound this process's processor time, files and core dumps for good."""
    limits = {
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES + MIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
    }
    for which, value in limits.items():
        _lower(which, value, for_good=True)


@contextmanager
def memory_for(num_bytes: int) -> Iterator[None]:
    """Let the block's address space grow by ``num_bytes`` and what reading itself needs.

    Linux alone knows how large the process is and keeps to the limit; elsewhere the caps on
    the file and its tensors are all there is.
    """
    size = _address_space()
    if size is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    _lower(resource.RLIMIT_AS, size + num_bytes + _SPARE_BYTES, for_good=False)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space() -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _lower(which: int, value: int, *, for_good: bool) -> None:
    soft, hard = resource.getrlimit(which)
    known = [bound for bound in (soft, hard, value) if bound != resource.RLIM_INFINITY]
    lowest = min(known)
    with suppress(ValueError, OSError):  # a system that does not know this limit
        resource.setrlimit(which, (lowest, lowest if for_good else hard))
