"""What is measured, and how: a backbone, or a method on a pair, by a little of their code on noise.

A method's seconds are drawn out to its own counts.
"""

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
from kdci.data.datasets.labelled import LabelledImages
from kdci.data.open_world.candidates import PoolPart, parts_of
from kdci.data.open_world.pool import OpenWorldPool
from kdci.deconfounding.arms import ARMS, Arm
from kdci.deconfounding.intervention import Intervention, StoredDictionary
from kdci.errors import KdciError
from kdci.models import PixelModel
from kdci.models.compiling import compile_trained, for_predictions
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.substitution.block import TIMED_PARTS, MethodBlock
from kdci.training.distillation import Distiller
from kdci.training.evaluation import PREDICTION_BATCH, predict_logits
from kdci.training.supervised import SupervisedTrainer
from pipelines.checking.estimating.machine import (
    Machine,
    Unheard,
    decoding_seconds,
    write_photographs,
)
from pipelines.checking.estimating.timing import Line, Seconds, draw_lines, timed, usual
from stages.distill import compensation_settings

CANDIDATES = "open-world images"
_FEW_CANDIDATES = 1024
_FEW = 32
_DECODING_SECONDS = 0.5
_MANY = 10**6
"""More steps than are ever taken."""
_RATE = 1e-6
"""A learning rate at which nothing diverges on noise."""


@dataclass(frozen=True)
class Backbone:
    """A network.

    Attributes:
        name: Its name.
        trained: Whether it is a teacher that is to be trained.
    """

    name: str
    trained: bool

    def __str__(self) -> str:
        return self.name

    def measure(self, machine: Machine, budgets: Sequence[float]) -> dict[str, Any]:
        """Time it on noise, whatever the budgets.

        Returns:
            ``predict``, the seconds of an image; ``train``, those of a step at the teacher's batch
            size, or None; ``decoding``, those of an image file; ``state``, the bytes of its
            weights' file; ``peak``, the most memory.
        """
        device = machine.runtime.device
        model = machine.teacher(self.name)
        few, many = machine.noise(_FEW), machine.noise(PREDICTION_BATCH)
        predict = partial(predict_logits, lambda x: model(x).logits, device=device)
        first = usual(lambda: predict(few, batch_size=_FEW), device)
        seconds = first / _FEW
        if first < 1.0:  # else a large network, to which the size of a batch is all the same
            whole = usual(lambda: predict(many, batch_size=len(many)), device)
            seconds = whole / len(many)
        state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        return {
            "predict": seconds,
            "train": self._step_seconds(machine) if self.trained else None,
            "state": state,
            "peak": machine.peak_bytes(),
            "decoding": decoding_seconds(machine.spec, seconds=_DECODING_SECONDS),
        }

    def _step_seconds(self, machine: Machine) -> float:
        recipe, spec = machine.params.teacher, machine.spec
        labels = torch.arange(recipe.batch_size) % spec.num_classes
        trainer = SupervisedTrainer(
            model=machine.student(self.name),
            data=LabelledImages(machine.noise(recipe.batch_size), labels),
            spec=spec,
            sink=Unheard(),
            num_epochs=_MANY,
            batch_size=recipe.batch_size,
            learning_rate=_RATE,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            seed=0,
        )
        steps = trainer.run()
        return usual(lambda: next(steps), machine.runtime.device)


@dataclass(frozen=True)
class Pair:
    """A method on a teacher and a student.

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

    def measure(self, machine: Machine, budgets: Sequence[float]) -> dict[str, Any]:
        """Time one preparation, one refresh, and some steps of each arm.

        Returns:
            ``pool`` and ``refresh``, seconds of the whole pool and of a refresh, by budget, drawn
            out to its counts; ``steps``, seconds of a distillation step, by arm; ``pool_peak`` and
            ``peak``, the most memory of the one and of all; ``is_made_up``, whether the open world
            was.
        """
        bench = _Bench(machine, self)
        lines = None if bench.is_shift else bench.draw()
        pool_peak = machine.peak_bytes()
        params = {b: machine.params.model_copy(update={"budget": b}) for b in budgets}
        drawn = {budget: bench.drawn_out(lines, params[budget]) for budget in budgets}
        return {
            "pool": {budget: pool for budget, (pool, _) in drawn.items()},
            "refresh": {budget: refresh for budget, (_, refresh) in drawn.items()},
            "steps": {arm: bench.step_seconds(ARMS[arm]) for arm in self.arms},
            "pool_peak": pool_peak,
            "peak": machine.peak_bytes(),
            "is_made_up": bench.is_made_up,
        }


Subject = Backbone | Pair


def subject_of(fields: Mapping[str, Any]) -> Subject:
    """Return the subject whose fields, as JSON types, are given."""
    if "arms" in fields:
        return Pair(**{**fields, "arms": tuple(fields["arms"])})
    return Backbone(**fields)


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
        self._is_warm = False
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

    def draw(self) -> dict[str, Line]:
        """Return what a part and a refresh take as their counts grow."""
        most = self.counts(self.machine.params)
        least = {**self.block(self.machine.params).part_counts, CANDIDATES: _FEW_CANDIDATES}
        least = {name: min(value, most[name]) for name, value in least.items()}
        if self.pair.candidates:  # no more can be chosen than there are
            few = least[CANDIDATES]
            most = {n: v if n == CANDIDATES else min(v, few) for n, v in most.items()}
        self.least = least
        return draw_lines(self.observe, least, most)

    def observe(self, counts: Mapping[str, int]) -> Seconds:
        """Return the seconds of a part of the preparation, and of a refresh after it."""
        source = self._source(counts)
        seconds = self._prepare(source)
        self._have_images(source)
        refresh = partial(source.refresh, self._student)
        found = {"part": seconds, "refresh": usual(refresh, self._device, is_warm=self._is_warm)}
        self._is_warm = True
        return found

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

    def _source(self, counts: Mapping[str, int]) -> BankSource:
        own = {name: value for name, value in counts.items() if name != CANDIDATES}
        block = self.block(self.machine.params).shortened(own)
        return block.source(self._context(counts.get(CANDIDATES, 0)))

    def _prepare(self, source: BankSource) -> float:
        """Return the seconds of a part; of all parts, where it is not known how many there are."""
        parts = source.prepare()
        number = source.num_preparations
        if not number:
            return timed(lambda: deque(parts, maxlen=0), self._device)
        seconds = usual(lambda: next(parts), self._device, most=number, is_warm=self._is_warm)
        if number <= TIMED_PARTS:  # what is shortened is made to its end: a refresh comes next
            deque(parts, maxlen=0)
        return seconds

    def _have_images(self, source: BankSource) -> None:
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
        if self.is_shift:
            source = BankSource(self._context(), params.shift)
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

    def _intervention(self, arm: Arm, source: BankSource) -> Intervention:
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
