"""Freed memory is used again without the kernel's help, unless somebody set up the allocator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kdci.training import host_memory

FAULTS = """
import resource, sys
import torch
from kdci.training.runtime import start

start(device="cpu", threads=1, precision="fp32", keep_memory=sys.argv[1] == "kept")

def step():
    # Larger than any block that glibc keeps by itself.
    maps = [torch.ones(40 << 20, dtype=torch.uint8) for _ in range(3)]
    return [one + 1 for one in maps]

for _ in range(9):  # until the heap has its place for them
    step()
taken = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step()
    taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(taken)[2])
"""


def faults(how: str, **variables: str) -> int:
    """Return the page faults of three steps after the first nine: the usual of five times.

    Now and then the heap gets a place more.
    """
    ours = {k: v for k, v in os.environ.items() if not k.startswith(host_memory._SETTINGS)}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env={**ours, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_a_step_frees_the_next_one_takes() -> None:
    pages = 3 * 6 * (40 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults("given back") > 0.9 * pages
    assert faults("kept") < 0.02 * pages


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_an_allocator_that_is_set_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(host_memory.ctypes, "CDLL", asked.append)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1048576")
    assert not host_memory.keep_freed_memory()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert not host_memory.keep_freed_memory()
    assert not asked


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(host_memory._SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed_memory()
