"""The params tree: every value a run depends on, typed, validated once.

Each block is what some stages depend on in ``dvc.yaml``, so a value sits in the block of the
stages that read it. Config stops at the builders: library functions take flat arguments.
Reading the file and wording its errors is the business of ``kdci.config.params_file``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from kdci.config.block import Block, Count, Name, refuse
from kdci.config.by_method import MethodBlocks, StudentRecipes
from kdci.config.data import Data as Data
from kdci.config.deconfounding import (
    CompensationBlock,
    Dictionary,
    Intervention,
    Shift,
    ShiftedPools,
    ShiftName,
)
from kdci.config.grid import Grid as Grid
from kdci.config.recipes import StudentRecipe as StudentRecipe
from kdci.config.recipes import TeacherRecipe as TeacherRecipe
from kdci.substitution.block import MethodBlock
from kdci.substitution.registry import names


class Runtime(Block):
    """Where and how precisely the numbers are computed; part of what makes bits repeat."""

    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Threads of one torch process; `auto` takes the cores this process may use."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` is autocast; `auto` takes it where the device computes it natively and is faster."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Of weights and feature maps; `auto` takes the faster one, by a short probe."""
    fold_teacher: bool = True
    """Whether the teacher that only predicts has its batch norms folded into convolutions."""
    compile: Literal["none", "teacher", "both"] = "none"
    """Which networks of a distillation step torch.compile translates before the first step."""


class BackboneBlock(Block):
    """What backbones have in common that are built here."""

    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """First layers of ResNets and MobileNet: `cifar` keeps the resolution, `imagenet` divides it
    by four; `auto`: cifar up to 64 pixels. A teacher that is adopted keeps its own."""


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
    """Test images of one forward pass; no accuracy depends on it."""


class Params(Block):
    """The whole tree of params.yaml."""

    preset: Name
    """Name of this experiment; artifacts lie below artifacts/<preset>."""
    grid: Grid
    """The axes of the experiment: which students there are."""
    budget: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor on the steps of pools and students, on every number's record: epochs and calls
    shrink first, the steps in them once there is one left. Teachers are not scaled."""
    runtime: Runtime = Runtime()
    """Where and how precisely the numbers are computed."""
    backbone: BackboneBlock = BackboneBlock()
    """How the backbones are built that the project builds itself."""
    data: Data
    """The original dataset, of the catalog or of your own."""
    teacher: TeacherRecipe
    """How the teacher is trained, or which finished one is adopted."""
    pool: Pool = Pool()
    """What holds for every substitution pool."""
    methods: MethodBlocks
    """What makes or chooses substitution images, a block a method. One that the grid does not use
    may be left out, here and in recipes."""
    recipes: StudentRecipes
    """How each method's student is trained: apart from `methods`, so that pools outlive it."""
    dictionary: Dictionary = Dictionary()
    """The confounder dictionary: its space and its number of prototypes."""
    compensation: CompensationBlock = CompensationBlock()
    """The bias compensation of the student's logits by the dictionary."""
    intervention: Intervention = Intervention()
    """What the arms beside vanilla and KDCI do."""
    shift: ShiftedPools | None = None
    """What the pools of `shifts` have in common; null: there are none."""
    shifts: dict[ShiftName, Shift] = Field(default_factory=dict)
    """Pools with a known shift, by name."""
    other: Other | None = None
    """The other pre-trained model, of `grid.others`; null: there is none."""
    distill: Distill = Distill()
    """What holds for every student's distillation."""
    evaluate: Evaluate = Evaluate()
    """How students are scored."""

    @model_validator(mode="after")
    def _methods_have_their_blocks(self) -> Self:
        for method in (*self.grid.methods, *self.grid.controls):
            for block in ("methods", "recipes"):
                if method not in getattr(self, block):
                    what = "the grid asks for this method, but its block is missing"
                    refuse(f"{block}.{method}", what)
        return self

    @model_validator(mode="after")
    def _data_is_there_or_not_needed(self) -> Self:
        for key, data in (("data", self.data), ("other.data", self.other and self.other.data)):
            if data and data.path is None and not data.spec.bundled:
                needs = f"{data.name} needs the folder it lies in"
                if self.teacher.artifact is None:
                    refuse(f"{key}.path", f"{needs}, or a finished teacher.artifact")
                if data.test is not None:
                    refuse(f"{key}.test", f"{needs} to test on: give data.path, or set it to null")
        return self

    @model_validator(mode="after")
    def _content_is_of_one_teacher(self) -> Self:
        if self.teacher.content is None:
            return self
        if self.teacher.artifact is None:
            what = "is of a finished teacher, but teacher.artifact names none"
            refuse("teacher.content", what)
        if len({*self.grid.teachers, *self.grid.others}) > 1:
            what = "names one teacher, the grid has several: leave it out"
            refuse("teacher.content", what)
        return self

    @model_validator(mode="after")
    def _fusion_fits_the_space(self) -> Self:
        if self.compensation.fusion == "identity" and self.dictionary.space == "features":
            what = "identity adds F(z) to the logits: its dictionary can not be in features"
            refuse("compensation.fusion", what)
        return self

    @model_validator(mode="after")
    def _shifts_have_their_blocks(self) -> Self:
        grid, shift = self.grid, self.shift
        if not grid.shifts:
            return self
        if shift is None:
            what = "the grid asks for pools with a known shift, but this block is missing"
            refuse("shift", what)
        elif shift.base not in grid.methods:
            refuse("shift.base", "is no method of the grid, whose pool could be resampled")
        if "vanilla" not in grid.shift_arms:
            what = "needs vanilla, which the other arms are measured against"
            refuse("grid.shift_arms", what)
        for name in grid.shifts:
            if name not in self.shifts:
                refuse(f"shifts.{name}", "the grid asks for this shift, but it is missing")
            if name in names():
                refuse("grid.shifts", f"{name} is the name of a method: call it otherwise")
        return self

    @model_validator(mode="after")
    def _the_other_model_fits(self) -> Self:
        if not self.grid.others:
            return self
        if self.other is None:
            what = "the grid asks for another model's dictionary, but this block is missing"
            refuse("other", what)
        same_classes = self.data.spec.num_classes == self.other.data.spec.num_classes
        if self.compensation.fusion == "identity" and not same_classes:
            what = "identity adds F(z) to the logits: the other model has other classes"
            refuse("compensation.fusion", what)
        return self

    def method(
        self, name: str, *, teacher: str | None = None, student: str | None = None
    ) -> MethodBlock:
        """Return the block of method ``name`` for a pair, with its steps scaled by the budget.

        Args:
            name: A method, a control, or a known shift, which has the block of its base.
            teacher: Whose `by_teacher` values hold; None: the block's own.
            student: Whose `by_student` values hold.

        Raises:
            TypeError: The params were read without their methods; see ``load_params``.
        """
        block = self.methods[self.base_of(name)]
        if not isinstance(block, MethodBlock):
            raise TypeError(f"methods.{name} was not loaded: read the params with their methods")
        block = block.of_pair(teacher, student)
        return block if self.budget == 1 else block.scaled(self.budget)

    def recipe(self, name: str) -> StudentRecipe:
        """Return the student recipe of method ``name``, with its steps scaled by the budget."""
        recipe = self.recipes[self.base_of(name)]
        return recipe if self.budget == 1 else recipe.scaled(self.budget)

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
        models = {"teachers": self.grid.others, "students": self.grid.others, "pairs": ()}
        grid = self.grid.model_copy(update={**models, **nothing})
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
