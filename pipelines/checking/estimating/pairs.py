"""What a method takes on a pair: a little of its own code on noise, drawn out to its own counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from kdci.config.params import Params
from kdci.data.bank.image_bank import ImageBank
from kdci.data.open_world.candidates import PoolPart, parts_of
from kdci.data.open_world.pool import OpenWorldPool
from kdci.deconfounding.arms import ARMS, Arm
from kdci.deconfounding.intervention import Intervention, StoredDictionary
from kdci.errors import KdciError
from kdci.models import PixelModel
from kdci.models.compiling import compile_trained, for_predictions
from kdci.substitution.base import SourceContext, SubstitutionSource
from kdci.substitution.block import TIMED_PARTS, MethodBlock
from kdci.substitution.resampled import ResampledSource
from kdci.training.distillation import Distiller
from pipelines.checking.estimating.machine import Machine, Unheard
from pipelines.checking.estimating.made_up import write_photographs
from pipelines.checking.estimating.timing import Line, Seconds, draw_lines, timed, usual
from stages.distill import compensation_settings

CANDIDATES = "open-world images"
_FEW_CANDIDATES = 1024
_MANY = 10**6
"""More steps than are ever taken."""
_RATE = 1e-6
"""A learning rate at which nothing diverges on noise."""


@dataclass(frozen=True)
class Pair:
    """What is timed: a method on a teacher and a student.

    Attributes:
        teacher: Its backbone.
        student: Its backbone.
        method: The method, or a known shift, whose pool only stays as it is.
        arms: The students' arms.
        candidates: Images of its open world; 0: it has none.
    """

    teacher: str
    student: str
    method: str
    arms: tuple[str, ...]
    candidates: int

    def __str__(self) -> str:
        return f"{self.method} on {self.teacher} to {self.student}"


def measure_pair(machine: Machine, pair: Pair, budgets: Sequence[float]) -> dict[str, Any]:
    """Time a method on a pair: one preparation, one refresh, some steps of each arm.

    Args:
        machine: Where.
        pair: What.
        budgets: Whose counts the seconds are drawn out to.

    Returns:
        ``pool`` and ``refresh``, seconds of the whole pool and of a refresh, by budget; ``steps``,
        seconds of a distillation step, by arm; ``pool_peak`` and ``peak``, the most memory of the
        one and of all; ``is_made_up``, whether the open world was.
    """
    bench = _Bench(machine, pair)
    lines: dict[str, Line] | None = None
    if not bench.is_shift:
        least = {**bench.block(machine.params).part_counts}
        if pair.candidates:
            least[CANDIDATES] = min(_FEW_CANDIDATES, pair.candidates)
        most = bench.counts(machine.params)
        least = {name: min(value, most[name]) for name, value in least.items()}
        if pair.candidates:  # no more can be chosen than there are
            few = least[CANDIDATES]
            most = {n: v if n == CANDIDATES else min(v, few) for n, v in most.items()}
        lines = draw_lines(bench.observe, least, most)
        bench.least = least
    pool_peak = machine.peak_bytes()
    by_budget = {budget: machine.params.model_copy(update={"budget": budget}) for budget in budgets}
    drawn = {budget: bench.drawn_out(lines, params) for budget, params in by_budget.items()}
    return {
        "pool": {budget: pool for budget, (pool, _) in drawn.items()},
        "refresh": {budget: refresh for budget, (_, refresh) in drawn.items()},
        "steps": {arm: bench.step_seconds(ARMS[arm]) for arm in pair.arms},
        "pool_peak": pool_peak,
        "peak": machine.peak_bytes(),
        "is_made_up": bench.is_made_up,
    }


class _Bench:
    """Sources, students and steps of one method on a pair.

    Attributes:
        least: The counts of the sources that students are distilled from.
        is_made_up: Whether open-world images stand in for others.
    """

    def __init__(self, machine: Machine, pair: Pair) -> None:
        self.machine, self.pair = machine, pair
        self.least: Mapping[str, int] = {}
        self.is_made_up = False
        self._numbers = count()
        self._device = machine.runtime.device
        self._teacher = machine.teacher(pair.teacher)

    @property
    def is_shift(self) -> bool:
        """Whether the pool is another's, which stays as it is."""
        return self.pair.method in self.machine.params.grid.shifts

    def block(self, params: Params) -> MethodBlock:
        """Return the method's block of the pair, at the params' budget."""
        return params.method(self.pair.method, teacher=self.pair.teacher, student=self.pair.student)

    def counts(self, params: Params) -> dict[str, int]:
        """Return the counts that the params ask for."""
        block = self.block(params)
        own = {name: int(getattr(block, name)) for name in block.part_counts}
        return {**own, CANDIDATES: self.pair.candidates}

    def observe(self, counts: Mapping[str, int]) -> Seconds:
        """Return the seconds of a part of the preparation, and of a refresh after it."""
        source = self._source(counts)
        seconds = self._prepare(source)
        self._have_images(source)
        refresh = usual(partial(source.refresh, self._student), self._device)
        return {"part": seconds, "refresh": refresh}

    def drawn_out(self, lines: dict[str, Line] | None, params: Params) -> tuple[float, float]:
        """Return the seconds of the whole preparation and of a refresh, as the params have them."""
        if lines is None:
            return 0.0, 0.0
        counts = self.counts(params)
        source = self.block(params).source(self._context())
        num_parts = source.num_preparations or 1
        return num_parts * lines["part"].seconds(counts), lines["refresh"].seconds(counts)

    def step_seconds(self, arm: Arm) -> float:
        """Return the seconds of a distillation step of an arm, without a refresh."""
        distiller = self._distiller(arm)
        distiller.refresh_period = _MANY  # the first step refreshes, and no other
        steps = distiller.run()
        next(steps)
        return usual(lambda: next(steps), self._device)

    @cached_property
    def _student(self) -> PixelModel:
        return self.machine.student(self.pair.student)

    def _context(self, candidates: int = 0) -> SourceContext:
        shape, number = self.machine.spec.image_shape, next(self._numbers)
        return SourceContext(
            teacher=self._teacher,
            spec=self.machine.spec,
            bank=ImageBank(self.machine.folder / f"bank-{number}.bin", shape=shape),
            seed=0,
            teacher_accuracy=0.5,
            open_world=partial(self._open_world, candidates),
        )

    def _source(self, counts: Mapping[str, int]) -> SubstitutionSource:
        own = {name: value for name, value in counts.items() if name != CANDIDATES}
        block = self.block(self.machine.params).shortened(own)
        return block.source(self._context(counts.get(CANDIDATES, 0)))

    def _prepare(self, source: SubstitutionSource) -> float:
        """Return the seconds of a part; of all parts, where it is not known how many there are."""
        parts = source.prepare()
        number = source.num_preparations
        if not number:
            return timed(lambda: deque(parts, maxlen=0), self._device)
        seconds = usual(lambda: next(parts), self._device, most=number)
        if number <= TIMED_PARTS:  # what is shortened is made to its end: a refresh comes next
            deque(parts, maxlen=0)
        return seconds

    def _have_images(self, source: SubstitutionSource) -> None:
        if len(source.bank) == 0:
            source.bank.append(self.machine.noise(_FEW_CANDIDATES).float() / 255)

    def _open_world(self, candidates: int) -> OpenWorldPool:
        """Open the first images of the open world, or made-up ones in their place."""
        block = self.block(self.machine.params).open_world  # type: ignore[attr-defined]
        spec = self.machine.spec
        open_pool: Callable[[list[PoolPart]], OpenWorldPool] = partial(
            OpenWorldPool,
            image_size=spec.image_size,
            channels=spec.channels,
            seed=0,
            num_images=candidates,
            max_bad_fraction=0.99,
        )
        with suppress(KdciError, OSError):  # told by the look at the data itself
            pool = open_pool(parts_of(block, Path()))
            if pool.num_candidates >= candidates:
                return pool
        self.is_made_up = True
        folder = write_photographs(self.machine.folder / "open-world", candidates, spec)
        return open_pool([PoolPart("folder", folder, 0)])

    def _distiller(self, arm: Arm) -> Distiller:
        params, runtime = self.machine.params, self.machine.params.runtime
        recipe = params.recipe(self.pair.method)
        source: SubstitutionSource
        if self.is_shift:
            source = ResampledSource(self._context())
        else:
            source = self._source(self.least)
            self._prepare(source)
        self._have_images(source)
        intervention = self._intervention(arm, source)
        compensation = intervention.correction(compensation_settings(params, arm), seed=0)
        intervention.stratify(source, self._teacher)
        student = self.machine.student(self.pair.student)
        if runtime.compile == "both":
            compile_trained(student)
        return Distiller(
            teacher=for_predictions(
                self._teacher,
                self.machine.spec.image_size,
                folded=runtime.fold_teacher,
                compiled=runtime.compile != "none",
            ),
            student=student,
            source=source,
            compensation=None if compensation is None else compensation.to(self._device),
            sink=Unheard(),
            num_epochs=1,
            steps_per_epoch=_MANY,
            batch_size=recipe.batch_size,
            learning_rate=_RATE,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    def _intervention(self, arm: Arm, source: SubstitutionSource) -> Intervention:
        """Return what the arm works on: a dictionary of as many random prototypes."""
        params, random = self.machine.params, torch.Generator().manual_seed(0)
        spec, number = self.machine.spec, params.dictionary.num_prototypes
        some = self.machine.noise(2).to(self._device).float() / 255
        features = self._teacher(some).features.shape[1]
        dimension = features if params.dictionary.space == "features" else spec.num_classes
        rows = len(source.bank)
        dictionary = StoredDictionary(
            torch.rand(number, dimension, generator=random),
            torch.full((number,), 1 / number),
            torch.arange(rows) % number,
            space=params.dictionary.space,
            num_requested=number,
            adopted=False,
        )
        return Intervention(
            arm,
            num_classes=spec.num_classes,
            logits_MK=torch.rand(rows, spec.num_classes, generator=random),
            dictionary=dictionary,
            strata=params.intervention.strata,
            max_repeats=params.intervention.max_repeats,
            tau=params.intervention.tau,
        )
