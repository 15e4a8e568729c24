"""The axes of an experiment: backbones, methods, arms, shifts and seeds, and who meets whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from kdci.config.block import Block, Seed, offered, raise_first
from kdci.config.catalog import BACKBONE_NAMES, is_backbone
from kdci.config.deconfounding import ShiftName
from kdci.deconfounding.arms import ARMS, BASE_ARMS, FURTHER_ARMS, OTHER_ARM
from kdci.substitution.registry import control_names, method_names


def _one_of(names: Callable[[], Iterable[str]], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names():
            raise PydanticCustomError(
                "unknown_name",
                "unknown {what} '{value}'",
                {"what": what, "value": value, "names": list(names())},
            )
        return value

    return AfterValidator(check)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("repeated", "lists a value twice", {})
    return values


def _known_backbone(value: str) -> str:
    if not is_backbone(value):
        raise PydanticCustomError(
            "unknown_name",
            "unknown {what} '{value}'",
            {"what": "backbone", "value": value, "names": [*BACKBONE_NAMES, *_FOREIGN]},
        )
    return value


_FOREIGN = ("torchvision-NAME", "timm-NAME")


def _further_arms() -> Iterable[str]:
    return FURTHER_ARMS


def _shift_arms() -> Iterable[str]:
    return [arm for arm in ARMS if arm != OTHER_ARM]


BackboneName = Annotated[
    str,
    AfterValidator(_known_backbone),
    offered(lambda: BACKBONE_NAMES, else_pattern="^(torchvision|timm)-"),
]
MethodName = Annotated[str, _one_of(method_names, "method"), offered(method_names)]
ControlName = Annotated[str, _one_of(control_names, "control"), offered(control_names)]
ArmName = Annotated[str, _one_of(_further_arms, "arm"), offered(_further_arms)]
ShiftArmName = Annotated[str, _one_of(_shift_arms, "arm"), offered(_shift_arms)]


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

    teachers: Annotated[
        tuple[BackboneName, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ]
    """Teacher backbones."""
    students: Annotated[tuple[BackboneName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """Student backbones: each meets every teacher."""
    pairs: Annotated[tuple[Pair, ...], Strict(False), AfterValidator(_distinct)] = ()
    """Teacher and student pairs, in the place of `students`, where they are no product."""
    methods: Annotated[
        tuple[MethodName, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ]
    """Data-free distillation methods."""
    controls: Annotated[tuple[ControlName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """What methods are measured against: one vanilla student each, of the first seeds."""
    arms: Annotated[tuple[ArmName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """What is measured beside vanilla and KDCI; see ``kdci.deconfounding.arms``."""
    shifts: Annotated[tuple[ShiftName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """Pools with a known shift, by their names in `shifts`."""
    shift_arms: Annotated[tuple[ShiftArmName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """The arms on these pools, `vanilla` among them."""
    others: Annotated[tuple[BackboneName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """Backbones of other pre-trained models whose dictionaries KDCI borrows (Table 5); one, which
    all students share, or several beside `pairs`."""
    other_pairs: Annotated[tuple[OtherPair, ...], Strict(False), AfterValidator(_distinct)] = ()
    """Whose dictionary each of `pairs` borrows."""
    pool_seeds: Annotated[
        tuple[Seed, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ] = (0,)
    """One substitution pool and one dictionary each; all student seeds meet every pool."""
    seeds: Annotated[
        tuple[Seed, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ]
    """Student seeds: initial weights and order of batches."""

    @model_validator(mode="after")
    def _students_or_pairs(self) -> Self:
        if bool(self.students) == bool(self.pairs):
            what = "give either students or pairs" if self.pairs else "lists no student"
            raise PydanticCustomError("cross_field", what, {"key": "students"})
        taught = {pair.teacher for pair in self.pairs}
        for teacher in self.teachers:
            if self.pairs and teacher not in taught:
                what = "{teacher} has no student in pairs"
                raise PydanticCustomError(
                    "cross_field", what, {"key": "teachers", "teacher": teacher}
                )
        for teacher in sorted(taught - {*self.teachers}):
            what = "{teacher} is none of grid.teachers"
            raise PydanticCustomError("cross_field", what, {"key": "pairs", "teacher": teacher})
        if self.pairs and self.shifts:
            what = "pools with a known shift go with students, not with pairs"
            raise PydanticCustomError("cross_field", what, {"key": "shifts"})
        return self

    @model_validator(mode="after")
    def _others_are_told_apart(self) -> Self:
        borrowing = [(pair.teacher, pair.student) for pair in self.other_pairs]
        lenders = {pair.other for pair in self.other_pairs}
        problems = {
            "others": "has several models: only pairs can tell who borrows from which"
            if len(self.others) > 1 and not self.pairs
            else None,
            "other_pairs": "says of each of pairs, in their order, from which of others it borrows"
            if self.pairs and self.others and borrowing != [*self.all_pairs]
            else "go with pairs and others"
            if self.other_pairs and not (self.pairs and self.others)
            else "borrow from just the models of others"
            if self.other_pairs and lenders != {*self.others}
            else None,
        }
        raise_first(problems)
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
