"""Memory that this process keeps when it frees it, for the next step to use again.

A step makes the same feature maps as the step before, some hundred megabytes of them. glibc gives
large blocks back to the system when they are freed, and each page of the next ones is then a fault
that the kernel answers with zeros: 1 to 13 % of a step on a CPU, by what else the process does (see
docs/performance.md). Kept, they cost nothing, and the most that the process holds stays the same.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Of glibc's malloc.h."""
_NEVER = -1
_AT_A_TIME = 64 << 20
"""Bytes that are asked of the system at least: few calls, and little beyond what is needed."""
_SETTINGS = ("MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_", "GLIBC_TUNABLES")
"""How variables begin by which somebody has set up the same themselves."""


def keep_freed_memory() -> bool:
    """Have the C library's allocator keep what is freed, from now on and in this process alone.

    Returns:
        Whether it does. It does not where the C library is not glibc, nor where the environment
        sets this up already: ``MALLOC_MMAP_THRESHOLD_`` and its like, or ``GLIBC_TUNABLES``.
    """
    if sys.platform != "linux" or any(name.startswith(_SETTINGS) for name in os.environ):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # All from the heap, whatever its size; and the heap's free end is kept too.
    options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AT_A_TIME))
    return all([set_option(option, value) == 1 for option, value in options])
