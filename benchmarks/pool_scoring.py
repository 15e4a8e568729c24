"""How fast a pool of unlabelled images is scored, and that its size does not matter to memory.

    python -m benchmarks.pool_scoring --data POOL --teacher FILE [--quick]

(a) The images of a folder with Parquet files are decoded and scored by a teacher, as DFND does,
beside the teacher's bare forward passes at the same batch size, in turn. (b) Pools of 1, 10 and
100 times a size are chosen from, each in a process of its own: made-up photographs in Parquet,
the same file many times, and a small teacher. Without --data, (a) is not run.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from kdci.config.catalog import DATASETS, DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.data.open_world.candidates import PoolPart
from kdci.data.open_world.photographs import PhotographCrops
from kdci.data.open_world.pool import OpenWorldPool
from kdci.data.open_world.scores import OpenWorldScores
from kdci.intake.fitting import fit_state_dict
from kdci.intake.quarantine import read_checkpoint
from kdci.models import PixelModel, load_state
from kdci.models.pretrained import build_network
from kdci.training.losses import one_hot_costs
from kdci.training.runtime import start

ROOT = Path(__file__).resolve().parents[1]
SPEC = DATASETS["cifar10"]
BATCH = 512
"""As the methods' default."""
NUM_SELECTED = 1000
LEAST_SHARE = 60.0
FACTORS = (1, 10, 100)
MOST_UNEVEN = 1.25
"""How many times what an image takes in one pool it may take in another."""
MOST_GROWN = 1.1
"""How many times the memory of the smallest pool the largest may take."""
_SIDE = 64
_TEACHER, _SMALL_TEACHER = "wrn-16-2", "wrn-10-1"
_SMALL_SPEC = DATASETS["digits"]
"""16x16 grey images: what is measured of them is the pool's part."""


def run(quick: bool, *, data: Path | None = None, teacher: Path | None = None) -> dict[str, Any]:
    """Measure both.

    Args:
        quick: Fewer images and timings.
        data: Folder with Parquet files of unlabelled images; None: (a) is not run.
        teacher: Checkpoint of a WRN-16-2 for CIFAR-10; None: its weights are random.

    Returns:
        What was measured, ``lines`` that tell it, and ``claims``.
    """
    few = {"num_images": 2048, "repeats": 2} if quick else {}
    rate = None if data is None else scoring_rate(data, teacher, **few)
    curve = pool_sizes(quick=quick)
    return {
        "rate": rate,
        "curve": curve,
        "lines": [*_rate_lines(rate), *_curve_lines(curve)],
        "claims": _claims(rate, curve),
    }


# -- (a) --------------------------------------------------------------------------------------


def scoring_rate(
    data: Path, teacher: Path | None, *, num_images: int = 0, repeats: int = 3
) -> dict[str, Any]:
    """Return images a second, decoded and scored, and of the teacher's forward passes alone.

    The passes meet a batch of floats that is there, and give logits; nothing else is in them.

    Args:
        data: Folder with Parquet files.
        teacher: Checkpoint; None: random weights.
        num_images: The first so many; 0: all.
        repeats: Timings of each, in turn.
    """
    model = _teacher(teacher)
    pool = _open_pool(data, SPEC, num_images)
    batch = torch.rand(BATCH, SPEC.channels, SPEC.image_size, SPEC.image_size)
    num_batches = min(20, -(-pool.num_candidates // BATCH))
    scoring, storing, bare = list[float](), list[float](), list[float]()
    _forward(model, batch, 1)
    for _ in range(repeats):
        bare.append(_forward(model, batch, num_batches) / (num_batches * BATCH))
        with tempfile.TemporaryDirectory() as folder:
            score, store = _choose(pool, model, Path(folder))
        scoring.append(score / pool.num_candidates)
        storing.append(store)
    shares = [100 * alone / whole for alone, whole in zip(bare, scoring, strict=True)]
    return {
        "num_images": pool.num_candidates,
        "batch_size": BATCH,
        "n": repeats,
        "threads": torch.get_num_threads(),
        "scored_per_second": 1 / statistics.median(scoring),
        "forward_per_second": 1 / statistics.median(bare),
        "share_percent": statistics.median(shares),
        "storing_seconds": statistics.median(storing),
    }


@torch.no_grad()
def _forward(model: PixelModel, batch: Tensor, number: int) -> float:
    """Return the seconds of some forward passes."""
    began = time.perf_counter()
    for _ in range(number):
        model(batch)
    return time.perf_counter() - began


def _open_pool(data: Path, spec: DatasetSpec, num_images: int = 0) -> OpenWorldPool:
    parts = [PoolPart("parquet", data, num_images)]
    return OpenWorldPool(parts, image_size=spec.image_size, channels=spec.channels, seed=0)


def _teacher(file: Path | None) -> PixelModel:
    model = build_network(_TEACHER, SPEC, seed=0)
    if file is not None:
        found = read_checkpoint(file).tensors
        fitted = fit_state_dict(found, file.name, backbone=_TEACHER, spec=SPEC)
        load_state(model.backbone, fitted.tensors)
    return model.eval().requires_grad_(requires_grad=False)


def _choose(pool: OpenWorldPool, teacher: PixelModel, folder: Path) -> tuple[float, float]:
    """Score a pool and store the images chosen; return the seconds of both."""
    scores = OpenWorldScores(
        "dfnd",
        name="score",
        score=one_hot_costs,
        keep="lowest",
        num_selected=NUM_SELECTED,
        batch_size=BATCH,
        skipped={},
    )
    bank = ImageBank(folder / "bank.bin", shape=pool.shape)
    began = scored = time.perf_counter()
    for report in scores.choose(lambda: pool, teacher, bank):
        if report.get("scored") == pool.num_candidates:
            scored = time.perf_counter()
    assert len(bank) == NUM_SELECTED
    return scored - began, time.perf_counter() - scored


# -- (b) --------------------------------------------------------------------------------------


def pool_sizes(*, quick: bool) -> list[dict[str, float]]:
    """Return images, seconds and peak bytes for each of ``FACTORS``."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pool.parquet"
        _write_photographs(file, NUM_SELECTED)
        found = []
        for factor in FACTORS[: 2 if quick else None]:
            folder = Path(place) / str(factor)
            folder.mkdir()
            for copy in range(factor):
                os.link(file, folder / f"{copy:03}.parquet")
            command = [
                sys.executable,
                "-m",
                "benchmarks.pool_scoring",
                "--choose-from",
                str(folder),
            ]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
            found.append(json.loads(done.stdout))
        return found


def _write_photographs(file: Path, number: int) -> None:
    crops = PhotographCrops(num_images=number, image_size=_SIDE, channels=3, seed=0)
    cells = []
    for pixels in crops.rows(torch.arange(number)).permute(0, 2, 3, 1).numpy():
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=90)
        cells.append({"bytes": out.getvalue()})
    pq.write_table(pa.table({"image": cells}), file, row_group_size=1000)


def choose_from(folder: Path) -> dict[str, float]:
    """Choose from a pool in this process; return its images, seconds and peak bytes."""
    start(device="cpu", threads=torch.get_num_threads(), precision="fp32")
    teacher = build_network(_SMALL_TEACHER, _SMALL_SPEC, seed=0).eval()
    began = time.perf_counter()
    pool = _open_pool(folder, _SMALL_SPEC)
    with tempfile.TemporaryDirectory() as work:
        _choose(pool, teacher, Path(work))
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    assert peak is not None
    return {
        "num_images": pool.num_candidates,
        "seconds": seconds,
        "peak_bytes": 1024 * int(peak[1]),
    }


# -- told -------------------------------------------------------------------------------------


def _rate_lines(rate: dict[str, Any] | None) -> list[str]:
    if rate is None:
        return ["decoding and scoring: not run, for want of images"]
    return [
        f"{rate['num_images']:,} images decoded and scored: {rate['scored_per_second']:,.0f} a "
        f"second; the teacher's bare forward passes at batch {rate['batch_size']}: "
        f"{rate['forward_per_second']:,.0f} a second; {rate['share_percent']:.0f} % (n = "
        f"{rate['n']}, {rate['threads']} threads)",
        f"reading and storing the {NUM_SELECTED:,} chosen: {rate['storing_seconds']:.1f} s",
    ]


def _curve_lines(curve: Sequence[dict[str, float]]) -> list[str]:
    return [
        f"{point['num_images']:,.0f} images: {point['seconds']:.1f} s, "
        f"{1e6 * point['seconds'] / point['num_images']:.0f} us each, "
        f"{point['peak_bytes'] / 1e6:.0f} MB at most"
        for point in curve
    ]


def _claims(rate: dict[str, Any] | None, curve: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    # The smallest is over so soon that its start counts: linear is what the larger ones are.
    each = [point["seconds"] / point["num_images"] for point in curve[1:]]
    grown = curve[-1]["peak_bytes"] / curve[0]["peak_bytes"]
    return [
        {
            "name": "scoring an open world, decoding included: share of bare forward passes",
            "value": None if rate is None else rate["share_percent"],
            "limit": LEAST_SHARE,
            "at_least": True,
            "unit": "%",
        },
        {
            "name": "choosing from 100 times the images: time an image, times that of 10 times",
            "value": each[-1] / each[0],
            "limit": MOST_UNEVEN,
            "at_least": False,
            "unit": "x",
        },
        {
            "name": "choosing from 100 times the images: peak memory, times that of 1 times",
            "value": grown,
            "limit": MOST_GROWN,
            "at_least": False,
            "unit": "x",
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pool_scoring")
    parser.add_argument("--data", type=Path, help="folder with Parquet files of images")
    parser.add_argument("--teacher", type=Path, help="checkpoint of a WRN-16-2 for CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="fewer images and timings")
    parser.add_argument("--choose-from", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.choose_from is not None:
        found: Any = choose_from(options.choose_from)
    else:
        found = run(options.quick, data=options.data, teacher=options.teacher)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
