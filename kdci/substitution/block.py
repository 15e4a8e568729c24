"""A method's params block: its values, what builds its source, and what it tells of itself.

Each method's file has a block of its own, whose defaults are the values behind the field's
published CIFAR rows. Torch-free, for params are read before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from kdci.config.block import Block, Count, refuse
from kdci.config.catalog import is_backbone
from kdci.config.recipes import StudentRecipe, scaled_calls

if TYPE_CHECKING:
    from kdci.substitution.bank_source import BankSource
    from kdci.substitution.base import SourceContext

Value = bool | int | float | str | None
Overrides = dict[str, dict[str, Value]]


BatchSize = Annotated[int, Field(ge=2)]
TIMED_PARTS = 3
"""Parts of a shortened block: one to warm up, and some to time."""


class MethodBlock(Block):
    """What the pipeline wants to know of any method's block, before anything runs."""

    is_control: ClassVar[bool] = False
    """Whether it is no method, but what methods are measured against. Read without running the
    file, so a control writes it out as ``True``."""
    needs_batch_norm: ClassVar[bool] = False
    """Whether the method inverts the statistics of the teacher's BatchNorm layers."""
    of_students: ClassVar[frozenset[str]] = frozenset({"temperature"})
    """Fields that no pool depends on, so that they may differ between a teacher's students."""
    pool_steps: ClassVar[tuple[str, ...]] = ()
    """Fields whose product is the number of steps that make the pool; (): images are chosen. Of
    two the first is that of the calls, which a budget shrinks before the steps in them."""
    part_counts: ClassVar[Mapping[str, int]] = {}
    """Fields that say how often something is done in one part of ``prepare`` and in a refresh, each
    with the least value that is worth timing: `kdci check --estimate` draws the time out to the
    block's own. Where a source does not know its number of parts, all of them are one."""

    by_teacher: Overrides = Field(default_factory=dict)
    """Values that differ for a teacher's backbone: `resnet-34: {adversarial_weight: 1.33}`."""
    by_student: Overrides = Field(default_factory=dict)
    """Values that differ for a student's backbone, of those that no pool depends on."""

    @model_validator(mode="after")
    def _overrides_are_values(self) -> Self:
        for key, overrides in (("by_teacher", self.by_teacher), ("by_student", self.by_student)):
            for backbone, values in overrides.items():
                self._require_override(f"{key}.{backbone}", backbone, values)
        for backbone, values in self.by_student.items():
            for name in values.keys() - self.of_students:
                refuse(f"by_student.{backbone}.{name}", "belongs to the pool, which students share")
        return self

    def _require_override(self, key: str, backbone: str, values: Mapping[str, Value]) -> None:
        if not is_backbone(backbone):
            refuse(key, "is no backbone")
        for name in values:
            if name not in type(self).model_fields or name in OVERRIDES:
                refuse(f"{key}.{name}", "is no value of this method")
        try:
            self._with(values)
        except ValidationError as error:
            first = error.errors()[0]
        else:
            return
        where = ".".join([key, *map(str, first["loc"])])
        refuse(where, first["msg"][:1].lower() + first["msg"][1:])

    def _with(self, values: Mapping[str, Any]) -> Self:
        plain = self.model_dump(exclude={*OVERRIDES})
        return type(self).model_validate({**plain, **values})

    def of_pair(self, teacher: str | None, student: str | None = None) -> Self:
        """Return the block as it is for a pair, with no overrides left in it."""
        values = {
            **self.by_teacher.get(teacher or "", {}),
            **self.by_student.get(student or "", {}),
        }
        return self._with(values) if self.by_teacher or self.by_student else self

    def source(self, context: SourceContext) -> BankSource:
        """Build what makes or chooses the images.

        Args:
            context: Teacher, dataset, bank and seed.

        Raises:
            UserError: The method does not fit the teacher.
        """
        raise NotImplementedError

    def scaled(self, budget: float) -> Self:
        """Return the block with the steps of its pool scaled; see ``Params.budget``."""
        return self

    def shortened(self, counts: Mapping[str, int]) -> Self:
        """Return the block with a few parts alone, of these ``part_counts``, to be timed."""
        return self.model_copy(update=dict(counts))

    @property
    def num_pool_images(self) -> int:
        """Images that the substitute stage leaves, the hold-out included."""
        raise NotImplementedError

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the terms of its loss: its fields `TERM_weight`, by the terms' names."""
        own = (name for name in type(self).model_fields if name.endswith("_weight"))
        return {name.removesuffix("_weight"): getattr(self, name) for name in own}

    @property
    def num_refresh_images(self) -> int:
        """Images that each refresh adds to the bank."""
        return 0

    @property
    def num_first_images(self) -> int:
        """Images that join before the student's first step, with the refresh before it."""
        return self.num_refresh_images

    def num_refreshes(self, recipe: StudentRecipe) -> int:
        """Return how often the source makes something more while a student is trained."""
        return 0


class CallsBlock(MethodBlock):
    """A method that makes images in calls: some before there is a student, then one an epoch."""

    of_students: ClassVar[frozenset[str]] = frozenset({"temperature", "adversarial_weight"})
    pool_steps: ClassVar[tuple[str, ...]] = ("warmup_calls", "num_steps")
    part_counts: ClassVar[Mapping[str, int]] = {"num_steps": 1}

    batch_size: BatchSize = 256
    """Images synthesised a call."""
    num_steps: Count
    """Steps a call (K)."""
    warmup_calls: Count
    """Calls without a student: the pool of the substitute stage."""

    def scaled(self, budget: float) -> Self:
        """Scale the calls without a student; those with one go with the student's epochs."""
        calls, steps = scaled_calls(self.warmup_calls, self.num_steps, budget)
        return self.model_copy(update={"warmup_calls": calls, "num_steps": steps})

    def shortened(self, counts: Mapping[str, int]) -> Self:
        """Return a few calls; see the base class."""
        return self.model_copy(update={"warmup_calls": TIMED_PARTS, **counts})

    @property
    def num_pool_images(self) -> int:
        """A batch for every call without a student."""
        return self.warmup_calls * self.batch_size

    @property
    def num_refresh_images(self) -> int:
        """A refresh is a call."""
        return self.batch_size

    def num_refreshes(self, recipe: StudentRecipe) -> int:
        """Return the student's epochs: each begins with a call."""
        return recipe.num_epochs


OVERRIDES = ("by_teacher", "by_student")
"""Fields of every block that are of pairs, and no value of the method."""
