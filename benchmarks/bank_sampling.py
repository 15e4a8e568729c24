"""Drawing an augmented batch of a pool: from the memory-mapped bank, and from PNG files.

    python -m benchmarks.bank_sampling [--quick]

The baseline is what the public implementations do: a DataLoader over PNG files that are opened,
decoded, cropped, flipped and normalised one by one. Both draw 128 CIFAR-sized images in shuffled
order, fp32, in turn in one process. A bank that the page cache does not hold is measured too: as it
is read, and as it would be if each row were waited for before the next one is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.interleaved import Action, spread, time_in_turn
from benchmarks.peak_memory import peak
from benchmarks.reference.image_files import batches, num_workers, write_images
from kdci.config.catalog import DATASETS
from kdci.data.bank import mapped_images
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.mapped_images import save_npy_chunks
from kdci.models import PixelModel
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.training.runtime import available_cores, generator

ROOT = Path(__file__).resolve().parents[1]
SPEC = DATASETS["cifar10"]
BATCH = 128
_SHAPE = (SPEC.channels, SPEC.image_size, SPEC.image_size)
_CPU = torch.device("cpu")


def run(quick: bool) -> dict[str, Any]:
    """Return times and memory of a batch.

    Args:
        quick: Whether a small pool is drawn from, few times.
    """
    num_images, num_files, repeats = (2048, 256, 3) if quick else (50_000, 5_000, 30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_pool(folder, num_images, num_files)
        # First, for what is mapped can not be dropped from memory.
        uncached = _uncached(folder, repeats=max(3, repeats // 3))
        threads = torch.get_num_threads()
        actions = {way: build(folder, threads) for way, build in WAYS.items()}
        taken = time_in_turn(actions, repeats=repeats, warm_up=2, device=_CPU)
        actions.clear()  # ends the workers that read the folder
        memory = {way: _memory(way, folder, threads) for way in WAYS}
    times = {way: spread(found) for way, found in taken.items()}
    median = times["project"]["median"]
    return {
        "batch_ms": median,
        "batch_size": BATCH,
        "num_images": num_images,
        "num_files": num_files,
        "num_workers": num_workers(threads),
        "threads": threads,
        "n": repeats,
        "ms": {**times, **uncached},
        "times_plain": times["plain"]["median"] / median,
        "peak_bytes": memory,
        "lines": _lines(times, uncached, memory),
    }


def _write_pool(folder: Path, num_images: int, num_files: int) -> None:
    """Write random images as the bank keeps them, and the first of them as PNG files."""
    random = generator("benchmark", "bank-sampling")
    count = num_images // 16
    parts = (
        torch.randint(0, 256, (count, *_SHAPE), generator=random, dtype=torch.uint8)
        for _ in range(16)
    )
    save_npy_chunks(parts, folder / "images.npy", num_images=16 * count)
    pool = mapped_images.MappedImages(folder / "images.npy")
    write_images(pool[:num_files], folder / "png")


def _source(folder: Path) -> BankSource:
    teacher = PixelModel(nn.Linear(1, 1), mean=SPEC.mean, std=SPEC.std)
    bank = ImageBank(folder / "tail.bin", shape=_SHAPE, base=folder / "images.npy")
    return BankSource(SourceContext(teacher, SPEC, bank, 0, None, _no_open_world))


def _no_open_world() -> Any:
    raise AssertionError("the pool is in the bank already")


def _from_bank(folder: Path, threads: int) -> Action:
    source = _source(folder)
    return lambda: source.batch(BATCH)


def _from_files(folder: Path, threads: int) -> Action:
    loader = batches(
        folder / "png", batch_size=BATCH, mean=SPEC.mean, std=SPEC.std, threads=threads
    )
    return lambda: next(loader)


WAYS: dict[str, Callable[[Path, int], Action]] = {"project": _from_bank, "plain": _from_files}


def _memory(way: str, folder: Path, threads: int) -> int:
    """Return the bytes that building a way and ten batches of it take, in a process of its own.

    Pages of the mapped file are not counted: they are the page cache's, which gives them up.
    """
    command = [sys.executable, "-m", "benchmarks.bank_sampling", "--memory-of", way, str(folder)]
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout)


def _ten_batches(way: str, folder: Path, threads: int) -> Action:
    action = WAYS[way](folder, threads)
    for _ in range(10):
        action()
    return action


def _mapped_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssFile:")).split()[1])


def _uncached(folder: Path, *, repeats: int) -> dict[str, dict[str, float]]:
    """Return times of a batch none of which is in memory; {} where the system keeps what it has."""
    if not hasattr(os, "posix_fadvise"):
        return {}
    memory_bytes = mapped_images._memory_bytes
    found: dict[str, list[float]] = {"uncached": [], "uncached, row by row": []}
    try:
        for _ in range(repeats):
            for way, memory in zip(found, (0, sys.maxsize), strict=True):
                _drop(folder / "images.npy")
                source = _source(folder)
                source.next_rows(1, len(source.bank))  # shuffles
                mapped_images._memory_bytes = _constant(memory)
                action = {way: lambda source=source: source.batch(BATCH)}
                found[way] += time_in_turn(action, repeats=1, warm_up=0, device=_CPU)[way]
                del source, action  # unmaps the file, or its pages could not be dropped
    finally:
        mapped_images._memory_bytes = memory_bytes
    return {way: spread(times) for way, times in found.items()}


def _constant(value: int) -> Callable[[], int]:
    return lambda: value


def _drop(file: Path) -> None:
    """Ask the system to forget a file's content."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _lines(
    times: dict[str, dict[str, float]],
    uncached: dict[str, dict[str, float]],
    memory: dict[str, int],
) -> list[str]:
    ours, plain = times["project"]["median"], times["plain"]["median"]
    lines = [
        f"{BATCH} images of 32 pixels, cropped and flipped: {ours:.2f} ms from the bank, "
        f"{plain:.0f} ms from PNG files: {plain / ours:.0f} times as fast; memory "
        f"{memory['project'] / 2**20:.1f} MiB and {memory['plain'] / 2**20:.1f} MiB, workers and "
        "the page cache not counted"
    ]
    if uncached:
        together, alone = (found["median"] for found in uncached.values())
        lines.append(
            f"of a bank that is not in memory: {together:.1f} ms where its rows are asked for "
            "together, as those of a bank larger than half of the machine's memory; one by one "
            f"{alone:.1f} ms"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a small pool, few timings")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--memory-of", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        way, folder = options.memory_of
        mapped = _mapped_bytes()
        kept: list[Action] = []  # or its file would be unmapped before its pages are counted
        needed = peak(lambda: kept.append(_ten_batches(way, Path(folder), options.threads)), _CPU)
        sys.stdout.write(f"{max(0, needed - (_mapped_bytes() - mapped))}\n")
        return 0
    sys.stdout.write(json.dumps(run(options.quick), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
