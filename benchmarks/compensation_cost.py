"""What KDCI adds to a distillation step, in time and in memory; part of ``make bench``.

A vanilla step is one step of the project's own ``Distiller`` on a fixed random batch: teacher
without gradient, student, soft-label loss, backward, SGD. What the compensation adds to it, its
forward and backward pass and its own SGD step, is timed by itself: it is thousandths of a step,
and the difference of two steps would be noise. The two are timed in turn in one process, so that
other load on the machine meets both alike, and medians are compared, and the fastest of each, which
load troubles least. Steps with the compensation in place are timed too, as a cross-check.

Memory is what lasts from the forward to the backward pass and from step to step: tensors that
autograd saves, weights, buffers, gradients and momentum.
"""

# B = batch, K = classes, N = prototypes

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.interleaved import time_in_turn
from benchmarks.kept_memory import kept_of, saved_by, storages
from kdci.config.catalog import BACKBONE_NAMES, DATASETS
from kdci.deconfounding.compensation import Compensation
from kdci.models import PixelModel
from kdci.models.pretrained import build_network
from kdci.store.revision import code_revision
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SoftLabelCriterion, StudentCriterion
from kdci.training.distillation import Distiller
from kdci.training.optimizers import SGD
from kdci.training.runtime import Runtime, generator, processor, start

ROOT = Path(__file__).resolve().parents[1]
KEY = "compensation_cost"
_WARM_UP = 3
_TEMPERATURE = 4.0
_RATE, _MOMENTUM, _WEIGHT_DECAY = 0.1, 0.9, 1e-4
_SPEC = DATASETS["cifar10"]
"""32x32x3 images of 10 classes."""


@dataclass(frozen=True)
class Case:
    """A size of the compensation, and the share of a step that it may cost.

    Attributes:
        num_prototypes: N.
        hidden_dim: Width of the additive attention.
        allowed_percent: Of a vanilla step's time; None: no claim is made.
    """

    num_prototypes: int
    hidden_dim: int
    allowed_percent: float | None = None

    @property
    def name(self) -> str:
        """Short name for tables and timers."""
        return f"N = {self.num_prototypes}, width {self.hidden_dim}"


CASES = (Case(10, 64, allowed_percent=1.0), Case(100, 64, allowed_percent=3.0), Case(100, 256))


@dataclass(frozen=True)
class Sizes:
    """What is distilled into what, and how often it is timed."""

    teacher: str
    student: str
    batch_size: int
    repeats: int


@dataclass
class FixedBatch:
    """A ``BankSource`` of one batch: as much of it as a step asks for."""

    images_BCHW: Tensor
    refresh_period: int | None = None
    bank: Sequence[Any] = field(default_factory=tuple)

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Do nothing; see the protocol."""
        return {}

    def batch(self, size: int) -> Tensor:
        """Return the batch."""
        return self.images_BCHW

    def criterion(self) -> StudentCriterion:
        """Return the loss that all generating methods share."""
        return SoftLabelCriterion(_TEMPERATURE)


class NoSink:
    """A ``MetricSink`` that keeps nothing."""

    def log(self, step: int, **values: float) -> None:
        """Forget it."""


def build_compensation(case: Case, runtime: Runtime) -> Compensation:
    """Return a module as the pipeline's, on random logits as prototypes."""
    random = generator("prototypes", case.num_prototypes)
    prototypes_NK = torch.randn(case.num_prototypes, _SPEC.num_classes, generator=random)
    proportions_N = torch.rand(case.num_prototypes, generator=random) + 0.1
    module = Compensation(
        prototypes_NK,
        proportions_N / proportions_N.sum(),
        num_classes=_SPEC.num_classes,
        hidden_dim=case.hidden_dim,
    )
    return module.to(runtime.device)


def optimizer_of(module: nn.Module) -> SGD:
    """Return an optimiser as the loop's, of one module."""
    return SGD(module.parameters(), lr=_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)


def build_distiller(sizes: Sizes, runtime: Runtime, compensation: Compensation | None) -> Distiller:
    """Return the loop whose steps are timed."""
    teacher, student = (
        build_network(
            name,
            _SPEC,
            seed=seed,
            device=runtime.device,
            autocast_dtype=runtime.format.autocast_dtype,
        )
        for seed, name in enumerate((sizes.teacher, sizes.student))
    )
    shape = (sizes.batch_size, _SPEC.channels, _SPEC.image_size, _SPEC.image_size)
    images_BCHW = torch.rand(shape, generator=generator("images")).to(runtime.device)
    return Distiller(
        teacher=teacher.requires_grad_(False),
        student=student,
        source=cast(BankSource, FixedBatch(images_BCHW)),
        compensation=compensation,
        sink=NoSink(),
        num_epochs=1,
        steps_per_epoch=10 * (sizes.repeats + _WARM_UP),  # the end, and its cosine, stay far
        batch_size=sizes.batch_size,
        learning_rate=_RATE,
        momentum=_MOMENTUM,
        weight_decay=_WEIGHT_DECAY,
    )


def step_of(distiller: Distiller) -> Callable[[], None]:
    """Return a function that takes one step of the loop."""
    steps = distiller.run()
    return lambda: cast(None, next(steps))


def extra_of(case: Case, sizes: Sizes, runtime: Runtime) -> Callable[[], None]:
    """Return a function that does what the compensation adds to a step, and no more."""
    compensation = build_compensation(case, runtime)
    optimizer = optimizer_of(compensation)
    shape = (sizes.batch_size, _SPEC.num_classes)
    logits_BK, gradient_BK = (
        torch.randn(shape, generator=generator(name)).to(runtime.device)
        for name in ("logits", "gradient")
    )
    gradient_BK /= sizes.batch_size

    def extra() -> None:
        student_logits_BK = logits_BK.detach().requires_grad_()
        compensated_BK = compensation(student_logits_BK)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(compensated_BK, gradient_BK)
        optimizer.step()

    return extra


def step_bytes(sizes: Sizes, runtime: Runtime) -> int:
    """Return what a vanilla step keeps: the student's graph and state, and the teacher."""
    distiller = build_distiller(sizes, runtime, None)
    step_of(distiller)()  # momentum and gradients exist after a step
    images = distiller.source.batch(sizes.batch_size)
    with torch.no_grad():
        teacher_logits = distiller.teacher(images).logits

    def loss() -> Tensor:
        terms = distiller.criterion(distiller.student(images).logits, teacher_logits)
        return torch.stack(list(terms.values())).sum()

    teacher = storages(iter([*distiller.teacher.parameters(), *distiller.teacher.buffers()]))
    kept = kept_of(distiller.student, distiller.optimizer)
    return sum({**teacher, **kept, **saved_by(loss)}.values())


def extra_bytes(case: Case, sizes: Sizes, runtime: Runtime) -> int:
    """Return what the compensation keeps beyond that."""
    compensation = build_compensation(case, runtime)
    optimizer = optimizer_of(compensation)
    shape = (sizes.batch_size, _SPEC.num_classes)
    logits_BK = torch.randn(shape, device=runtime.device, requires_grad=True)
    compensation(logits_BK).sum().backward()
    optimizer.step()
    saved = saved_by(lambda: cast(Tensor, compensation(logits_BK)))
    return sum({**kept_of(compensation, optimizer), **saved}.values())


def measure(sizes: Sizes, runtime: Runtime) -> dict[str, Any]:
    """Return times and bytes of a vanilla step and of every case."""
    actions = {"step": step_of(build_distiller(sizes, runtime, None))}
    for case in CASES:
        compensated = build_distiller(sizes, runtime, build_compensation(case, runtime))
        actions[f"step, {case.name}"] = step_of(compensated)
        actions[f"extra, {case.name}"] = extra_of(case, sizes, runtime)
    seconds = time_in_turn(actions, repeats=sizes.repeats, warm_up=_WARM_UP, device=runtime.device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base_bytes = step_bytes(sizes, runtime)
    fastest = {name: min(values) for name, values in seconds.items()}
    rows = []
    for case in CASES:
        extra = extra_bytes(case, sizes, runtime)
        rows.append(
            {
                **asdict(case),
                "extra_ms": 1e3 * medians[f"extra, {case.name}"],
                "time_percent": 100 * medians[f"extra, {case.name}"] / medians["step"],
                "time_percent_fastest": 100 * fastest[f"extra, {case.name}"] / fastest["step"],
                "step_ratio": medians[f"step, {case.name}"] / medians["step"],
                "extra_bytes": extra,
                "memory_percent": 100 * extra / base_bytes,
            }
        )
    low, _, high = statistics.quantiles(seconds["step"], n=4)
    return {
        **asdict(sizes),
        "step_ms": 1e3 * medians["step"],
        "step_ms_fastest": 1e3 * fastest["step"],
        "step_ms_quartiles": [1e3 * low, 1e3 * high],
        "step_bytes": base_bytes,
        "cases": rows,
    }


def environment(runtime: Runtime) -> dict[str, Any]:
    """Return what the numbers depend on besides the sizes."""
    return {
        "hardware": hardware(runtime),
        "device": str(runtime.device),
        "threads": runtime.threads,
        "precision": runtime.precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "revision": code_revision(),
    }


def hardware(runtime: Runtime) -> str:
    """Name the processor, with its cores and vector instructions."""
    if runtime.device.type == "cuda":
        return str(torch.cuda.get_device_name(runtime.device))
    return f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def write(path: Path, result: dict[str, Any]) -> None:
    """Put the result into a file of results, beside those of other benchmarks."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[KEY] = result
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """Return the result as text."""
    low, high = result["step_ms_quartiles"]
    lines = [
        f"{result['teacher']} -> {result['student']}, batch {result['batch_size']}, "
        f"{result['hardware']}, {result['threads']} threads, {result['precision']}, "
        f"torch {result['torch']}",
        f"vanilla step: {result['step_ms']:.1f} ms ({low:.1f} to {high:.1f}; fastest "
        f"{result['step_ms_fastest']:.1f}), "
        f"{result['step_bytes'] / 1e6:.0f} MB; medians of {result['repeats']}",
        "",
        f"{'compensation':<20}{'adds':>10}{'of a step':>11}{'fastest':>9}{'allowed':>9}"
        f"{'memory':>10}{'of a step':>11}{'step / vanilla':>16}",
    ]
    for row in result["cases"]:
        case = Case(row["num_prototypes"], row["hidden_dim"], row["allowed_percent"])
        allowed = "-" if case.allowed_percent is None else f"{case.allowed_percent:g} %"
        lines.append(
            f"{case.name:<20}{row['extra_ms']:>7.2f} ms{row['time_percent']:>9.2f} %"
            f"{row['time_percent_fastest']:>7.2f} %{allowed:>9}"
            f"{row['extra_bytes'] / 1e3:>7.0f} kB{row['memory_percent']:>9.3f} %"
            f"{row['step_ratio']:>16.3f}"
        )
    return "\n".join(lines) + "\n"


def run(quick: bool) -> dict[str, Any]:
    """Measure with the defaults of the command line, or on tiny networks; see ``main``."""
    runtime = start(device="auto", threads=torch.get_num_threads(), precision="auto")
    names = ("wrn-10-1", "wrn-10-1") if quick else ("wrn-40-2", "wrn-16-1")
    sizes = Sizes(*names, batch_size=8 if quick else 256, repeats=2 if quick else 30)
    return {**environment(runtime), **measure(sizes, runtime)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description="What KDCI adds to a distillation step.")
    parser.add_argument("--repeats", type=int, default=30, help="timings of each, at least 2")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--teacher", choices=BACKBONE_NAMES, default="wrn-40-2")
    parser.add_argument("--student", choices=BACKBONE_NAMES, default="wrn-16-1")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results.json")
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error("--repeats must be at least 2")
    runtime = start(device=options.device, threads=options.threads or "auto", precision="auto")
    sizes = Sizes(options.teacher, options.student, options.batch_size, options.repeats)
    result = {**environment(runtime), **measure(sizes, runtime)}
    write(options.out, result)
    sys.stdout.write(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
