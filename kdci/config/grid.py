"""The axes of an experiment: backbones, methods, arms, shifts and seeds, and who meets whom."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Annotated, Self

from pydantic import model_validator

from kdci.config.block import Block, Distinct, Seed, SomeDistinct, offered, one_of, refuse
from kdci.config.catalog import BACKBONE_NAMES, is_backbone
from kdci.config.deconfounding import ShiftName
from kdci.deconfounding.arms import ARMS, BASE_ARMS, FURTHER_ARMS, OTHER_ARM
from kdci.substitution.registry import control_names, method_names


def _further_arms() -> Iterable[str]:
    return FURTHER_ARMS


def _shift_arms() -> Iterable[str]:
    return [arm for arm in ARMS if arm != OTHER_ARM]


BackboneName = Annotated[
    str,
    one_of(
        lambda: BACKBONE_NAMES,
        "backbone",
        is_further=is_backbone,
        further=("torchvision-NAME", "timm-NAME"),
    ),
    offered(lambda: BACKBONE_NAMES, else_pattern="^(torchvision|timm)-"),
]
MethodName = Annotated[str, one_of(method_names, "method"), offered(method_names)]
ControlName = Annotated[str, one_of(control_names, "control"), offered(control_names)]
ArmName = Annotated[str, one_of(_further_arms, "arm"), offered(_further_arms)]
ShiftArmName = Annotated[str, one_of(_shift_arms, "arm"), offered(_shift_arms)]


class Pair(Block):
    """A teacher and a student."""

    teacher: BackboneName
    """Backbone of the teacher."""
    student: BackboneName
    """Backbone of the student that it teaches."""


class OtherPair(Pair):
    """A pair, and whose dictionary it borrows."""

    other: BackboneName
    """Backbone of the model whose dictionary it borrows."""


class Grid(Block):
    """The axes of the experiment; ``dvc.yaml`` is their product."""

    teachers: SomeDistinct[BackboneName]
    """Teacher backbones."""
    students: Distinct[BackboneName] = ()
    """Student backbones: each meets every teacher."""
    pairs: Distinct[Pair] = ()
    """Teacher and student pairs, in the place of `students`, where they are no product."""
    methods: SomeDistinct[MethodName]
    """Data-free distillation methods."""
    controls: Distinct[ControlName] = ()
    """What methods are measured against: one vanilla student each, of the first seeds."""
    arms: Distinct[ArmName] = ()
    """What is measured beside vanilla and KDCI; see ``kdci.deconfounding.arms``."""
    shifts: Distinct[ShiftName] = ()
    """Pools with a known shift, by their names in `shifts`."""
    shift_arms: Distinct[ShiftArmName] = ()
    """The arms on these pools, `vanilla` among them."""
    others: Distinct[BackboneName] = ()
    """Backbones of other pre-trained models whose dictionaries KDCI borrows (Table 5); one, which
    all students share, or several beside `pairs`."""
    other_pairs: Distinct[OtherPair] = ()
    """Whose dictionary each of `pairs` borrows."""
    pool_seeds: SomeDistinct[Seed] = (0,)
    """One substitution pool and one dictionary each; all student seeds meet every pool."""
    seeds: SomeDistinct[Seed]
    """Student seeds: initial weights and order of batches."""

    @model_validator(mode="after")
    def _students_or_pairs(self) -> Self:
        if bool(self.students) == bool(self.pairs):
            what = "give either students or pairs" if self.pairs else "lists no student"
            refuse("students", what)
        taught = {pair.teacher for pair in self.pairs}
        for teacher in self.teachers:
            if self.pairs and teacher not in taught:
                refuse("teachers", f"{teacher} has no student in pairs")
        for teacher in sorted(taught - {*self.teachers}):
            refuse("pairs", f"{teacher} is none of grid.teachers")
        if self.pairs and self.shifts:
            refuse("shifts", "pools with a known shift go with students, not with pairs")
        return self

    @model_validator(mode="after")
    def _others_are_told_apart(self) -> Self:
        if len(self.others) > 1 and not self.pairs:
            refuse("others", "has several models: only pairs can tell who borrows from which")
        borrowing = [(pair.teacher, pair.student) for pair in self.other_pairs]
        if self.pairs and self.others and borrowing != [*self.all_pairs]:
            what = "says of each of pairs, in their order, from which of others it borrows"
            refuse("other_pairs", what)
        if self.other_pairs and not (self.pairs and self.others):
            refuse("other_pairs", "go with pairs and others")
        if self.other_pairs and {pair.other for pair in self.other_pairs} != {*self.others}:
            refuse("other_pairs", "borrow from just the models of others")
        return self

    @property
    def all_pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (teacher, student): the listed pairs, or the product."""
        if self.pairs:
            return tuple((pair.teacher, pair.student) for pair in self.pairs)
        return tuple(product(self.teachers, self.students))

    def other_of(self, teacher: str, student: str) -> str:
        """Return the other model whose dictionary a pair borrows."""
        for pair in self.other_pairs:
            if (pair.teacher, pair.student) == (teacher, student):
                return pair.other
        return self.others[0]

    @property
    def sources(self) -> tuple[str, ...]:
        """Every pool a student may have: of methods, of controls, with a known shift."""
        return (*self.methods, *self.controls, *self.shifts)

    @property
    def method_arms(self) -> tuple[str, ...]:
        """The arms of each method, vanilla first."""
        return (*BASE_ARMS, *self.arms, *([OTHER_ARM] if self.others else []))
