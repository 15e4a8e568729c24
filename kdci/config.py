"""The params tree: every value a run depends on, typed, validated once, without torch.

Each block is what some stages depend on in ``dvc.yaml``, so a value sits in the block of the
stages that read it. Config stops at the builders: library functions take flat arguments.
Reading the file and wording its errors is the business of ``kdci.params_file``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    Strict,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kdci.arms import ARMS, BASE_ARMS, FURTHER_ARMS, OTHER_ARM
from kdci.catalog import BACKBONE_NAMES, CONTROL_NAMES, DATASETS, DatasetSpec
from kdci.config_block import Block, Count, Folder, Name, NonNegative, Positive, Seed
from kdci.deconfounding_config import (
    CompensationBlock,
    Dictionary,
    Intervention,
    Shift,
    ShiftedPools,
    ShiftName,
)
from kdci.method_config import Cmi, Dafl, DeepInv, Dfnd, Fast, MethodBlock, Mosaick, Noise


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


BackboneName = Annotated[str, _one_of(lambda: BACKBONE_NAMES, "backbone")]
DatasetName = Annotated[str, _one_of(lambda: DATASETS, "dataset")]
MethodName = Annotated[str, _one_of(lambda: METHOD_NAMES, "method")]
ControlName = Annotated[str, _one_of(lambda: CONTROL_NAMES, "control")]
ArmName = Annotated[str, _one_of(lambda: FURTHER_ARMS, "arm")]
ShiftArmName = Annotated[str, _one_of(lambda: [a for a in ARMS if a != OTHER_ARM], "arm")]


class Runtime(Block):
    """Where and how precisely the numbers are computed; part of what makes bits repeat."""

    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Threads of one torch process; `auto` takes the cores this process may use."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` is autocast; `auto` takes it where the device computes it natively."""


class Data(Block):
    """The original dataset: opened by the teacher stage and by evaluate, by nothing else."""

    name: DatasetName
    path: Folder | None = None
    """Folder that holds the dataset; digits needs none."""
    test: Literal["test"] | None = "test"
    """The split students are scored on; null: there is no test data, agreement is reported."""

    @property
    def spec(self) -> DatasetSpec:
        """Return the facts of the dataset."""
        return DATASETS[self.name]

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        bundled = self.spec.bundled
        if bundled and self.path is not None:
            raise PydanticCustomError(
                "cross_field", "digits comes with scikit-learn and takes no path", {"key": "path"}
            )
        if not bundled and self.path is None:
            raise PydanticCustomError(
                "cross_field",
                "{name} needs the folder it lies in",
                {"key": "path", "name": self.name},
            )
        return self


class Grid(Block):
    """The axes of the experiment; ``dvc.yaml`` is their product."""

    teachers: Annotated[
        tuple[BackboneName, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ]
    """Teacher backbones."""
    students: Annotated[
        tuple[BackboneName, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ]
    """Student backbones."""
    methods: Annotated[
        tuple[MethodName, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ]
    """Data-free distillation methods."""
    controls: Annotated[tuple[ControlName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """What methods are measured against: one vanilla student each, of the first seeds."""
    arms: Annotated[tuple[ArmName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """What is measured beside vanilla and KDCI; see ``kdci.arms``."""
    shifts: Annotated[tuple[ShiftName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """Pools with a known shift, by their names in `shifts`."""
    shift_arms: Annotated[tuple[ShiftArmName, ...], Strict(False), AfterValidator(_distinct)] = ()
    """The arms on these pools, `vanilla` among them."""
    others: Annotated[tuple[BackboneName, ...], Strict(False), Field(max_length=1)] = ()
    """Backbone of another pre-trained model whose dictionary KDCI borrows (Table 5)."""
    pool_seeds: Annotated[
        tuple[Seed, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ] = (0,)
    """One substitution pool and one dictionary each; all student seeds meet every pool."""
    seeds: Annotated[
        tuple[Seed, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
    ]
    """Student seeds: initial weights and order of batches."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Every pool a student may have: of methods, of controls, with a known shift."""
        return (*self.methods, *self.controls, *self.shifts)

    @property
    def method_arms(self) -> tuple[str, ...]:
        """The arms of each method, vanilla first."""
        return (*BASE_ARMS, *self.arms, *([OTHER_ARM] if self.others else []))


class TeacherRecipe(Block):
    """Supervised training of the teacher: SGD with momentum, cosine schedule, crop and flip."""

    num_epochs: Count
    batch_size: Count
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 5e-4
    seed: Seed = 0


class StudentRecipe(Block):
    """The student's share of a method's recipe (SGD); the budget is epochs x steps x batch."""

    num_epochs: Count
    steps_per_epoch: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 1e-4
    schedule: Literal["cosine", "milestones", "constant"] = "cosine"
    """`cosine` falls to final_learning_rate; `milestones` divides by 10 at 40 % and 80 %."""
    final_learning_rate: NonNegative = 0.0
    """End of the cosine."""

    @property
    def num_steps(self) -> int:
        """Number of distillation steps."""
        return self.num_epochs * self.steps_per_epoch


class Methods(Block):
    """What makes or chooses substitution images, a block a method.

    A method that the grid does not use may be left out, here and in recipes.
    """

    dafl: Dafl | None = None
    fast: Fast | None = None
    cmi: Cmi | None = None
    deepinv: DeepInv | None = None
    mosaick: Mosaick | None = None
    dfnd: Dfnd | None = None
    noise: Noise | None = None


class Recipes(Block):
    """How each method's student is trained: apart from Methods, so that pools outlive it."""

    dafl: StudentRecipe | None = None
    fast: StudentRecipe | None = None
    cmi: StudentRecipe | None = None
    deepinv: StudentRecipe | None = None
    mosaick: StudentRecipe | None = None
    dfnd: StudentRecipe | None = None
    noise: StudentRecipe | None = None


METHOD_NAMES: tuple[str, ...] = tuple(
    name for name in Methods.model_fields if name not in CONTROL_NAMES
)


class Pool(Block):
    """What holds for every substitution pool."""

    holdout: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of the pool kept from the student, to measure agreement with the teacher."""


class Other(Block):
    """Another pre-trained model, whose dictionary Table 5 borrows."""

    data: Data
    """What it was trained on: other classes, in other number."""


class Distill(Block):
    """What holds for every student."""

    num_snapshots: Annotated[int, Field(ge=1, le=100)] = 8
    """Student snapshots left for the learning curves, the last one included."""


class Evaluate(Block):
    """How students are scored."""

    deploy: Literal["backbone", "compensated"] = "backbone"
    """Which accuracy is *the* accuracy of a KDCI student."""
    batch_size: Count = 512


def _raise_first(problems: dict[str, str | None]) -> None:
    for key, problem in problems.items():
        if problem is not None:
            raise PydanticCustomError("cross_field", "{problem}", {"key": key, "problem": problem})


class Params(Block):
    """The whole tree of params.yaml."""

    preset: Name
    """Name of this experiment; artifacts lie below artifacts/<preset>."""
    grid: Grid
    runtime: Runtime = Runtime()
    data: Data
    teacher: TeacherRecipe
    pool: Pool = Pool()
    methods: Methods
    recipes: Recipes
    dictionary: Dictionary = Dictionary()
    compensation: CompensationBlock = CompensationBlock()
    intervention: Intervention = Intervention()
    shift: ShiftedPools | None = None
    shifts: dict[ShiftName, Shift] = Field(default_factory=dict)
    """Pools with a known shift, by name."""
    other: Other | None = None
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _methods_have_their_blocks(self) -> Self:
        for method in (*self.grid.methods, *self.grid.controls):
            for block in ("methods", "recipes"):
                if getattr(getattr(self, block), method) is None:
                    raise PydanticCustomError(
                        "cross_field",
                        "the grid asks for this method, but its block is missing",
                        {"key": f"{block}.{method}"},
                    )
        return self

    @model_validator(mode="after")
    def _fusion_fits_the_space(self) -> Self:
        if self.compensation.fusion == "identity" and self.dictionary.space == "features":
            raise PydanticCustomError(
                "cross_field",
                "identity adds F(z) to the logits: its dictionary can not be in features",
                {"key": "compensation.fusion"},
            )
        return self

    @model_validator(mode="after")
    def _shifts_have_their_blocks(self) -> Self:
        grid, shift = self.grid, self.shift
        if not grid.shifts:
            return self
        problems = {
            "shift": "the grid asks for pools with a known shift, but this block is missing"
            if shift is None
            else None,
            "shift.base": "is no method of the grid, whose pool could be resampled"
            if shift is not None and shift.base not in grid.methods
            else None,
            "grid.shift_arms": "needs vanilla, which the other arms are measured against"
            if "vanilla" not in grid.shift_arms
            else None,
        }
        for name in grid.shifts:
            if name not in self.shifts:
                problems[f"shifts.{name}"] = "the grid asks for this shift, but it is missing"
            if name in {*METHOD_NAMES, *CONTROL_NAMES}:
                problems["grid.shifts"] = f"{name} is the name of a method: call it otherwise"
        _raise_first(problems)
        return self

    @model_validator(mode="after")
    def _the_other_model_fits(self) -> Self:
        if not self.grid.others:
            return self
        if self.other is None:
            raise PydanticCustomError(
                "cross_field",
                "the grid asks for another model's dictionary, but this block is missing",
                {"key": "other"},
            )
        same_classes = self.data.spec.num_classes == self.other.data.spec.num_classes
        if self.compensation.fusion == "identity" and not same_classes:
            raise PydanticCustomError(
                "cross_field",
                "identity adds F(z) to the logits: the other model has other classes",
                {"key": "compensation.fusion"},
            )
        return self

    def method(self, name: str) -> MethodBlock:
        """Return the block of method ``name``; of a known shift, that of its base."""
        block: MethodBlock = getattr(self.methods, self.base_of(name))
        return block

    def recipe(self, name: str) -> StudentRecipe:
        """Return the student recipe of method ``name``; of a known shift, that of its base."""
        recipe: StudentRecipe = getattr(self.recipes, self.base_of(name))
        return recipe

    def base_of(self, name: str) -> str:
        """Return the method behind a pool: itself, or the one that a shift was built into."""
        if name in self.grid.shifts and self.shift is not None:
            return self.shift.base
        return name

    def of_other(self) -> Params:
        """Return the params of the other model's pipeline: its backbone, its data.

        Raises:
            ValueError: There is no other model.
        """
        if self.other is None or not self.grid.others:
            raise ValueError("grid.others names no other model")
        nothing = dict.fromkeys(("controls", "arms", "shifts", "shift_arms", "others"), ())
        grid = self.grid.model_copy(update={"teachers": self.grid.others, **nothing})
        return self.model_copy(update={"grid": grid, "data": self.other.data})

    def blocks(self, *keys: str) -> dict[str, Any]:
        """Return the values at dotted ``keys``, as plain JSON types.

        Raises:
            KeyError: A key does not exist.
        """
        tree = self.model_dump(mode="json", by_alias=True)
        values = {}
        for key in keys:
            value: Any = tree
            for part in key.split("."):
                value = value[part]
            values[key] = value
        return values


def hash_json(value: Any) -> str:
    """Return the SHA-256 of ``value`` in a canonical JSON form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
