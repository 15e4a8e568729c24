"""The methods' params blocks: what makes or chooses substitution images, a class a method.

The fields of a block are the keyword arguments of the method's source, except `open_world`.
Defaults are the values behind the field's published CIFAR rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from kdci.config.block import Block, Count, Fraction, NonNegative, Positive
from kdci.config.catalog import is_backbone
from kdci.config.open_world import OpenWorld as OpenWorld
from kdci.config.recipes import scaled_calls, scaled_count

Value = bool | int | float | str | None
Overrides = dict[str, dict[str, Value]]


class MethodBlock(Block):
    """What the pipeline wants to know of any method's block, before anything runs."""

    needs_batch_norm: ClassVar[bool] = False
    """Whether the method inverts the statistics of the teacher's BatchNorm layers."""
    of_students: ClassVar[frozenset[str]] = frozenset({"temperature"})
    """Fields that no pool depends on, so that they may differ between a teacher's students."""

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
                raise _mistake(
                    f"by_student.{backbone}.{name}", "belongs to the pool, which students share"
                )
        return self

    def _require_override(self, key: str, backbone: str, values: Mapping[str, Value]) -> None:
        if not is_backbone(backbone):
            raise _mistake(key, "is no backbone")
        for name in values:
            if name not in type(self).model_fields or name in OVERRIDES:
                raise _mistake(f"{key}.{name}", "is no value of this method")
        try:
            self._with(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([key, *map(str, first["loc"])])
            raise _mistake(where, first["msg"][:1].lower() + first["msg"][1:]) from None

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

    def scaled(self, budget: float) -> Self:
        """Return the block with the steps of its pool scaled; see ``Params.budget``."""
        return self

    @property
    def num_pool_images(self) -> int:
        """Images that the substitute stage leaves, the hold-out included."""
        raise NotImplementedError

    @property
    def num_first_images(self) -> int:
        """Images that join before the student's first step."""
        return 0


OVERRIDES = ("by_teacher", "by_student")
"""Fields of every block that no source takes."""


def _mistake(key: str, problem: str) -> PydanticCustomError:
    return PydanticCustomError("cross_field", "{problem}", {"key": key, "problem": problem})


BatchSize = Annotated[int, Field(ge=2)]


class Dafl(MethodBlock):
    """DAFL (ICCV 2019): a generator that the frozen teacher judges, trained to the end first."""

    generator: Literal["small", "original"] = "small"
    """`small`: that of the published comparisons; `original`: the authors' own (latent 1000)."""
    latent_dim: Count = 512
    generator_width: Count = 64
    batch_size: BatchSize = 256
    num_steps: Count = 16_000
    """Generator steps."""
    sample_every: Count = 80
    """A batch of fresh images joins the pool each time so many steps were taken."""
    skip_steps: Annotated[int, Field(ge=0)] = 0
    """First steps that leave no images."""
    learning_rate: Positive = 1e-3
    one_hot_weight: NonNegative = 1.0
    activation_weight: NonNegative = 1e-3
    entropy_weight: NonNegative = 20.0
    """Of the information entropy in nats; a weight meant for log10 is 2.303 times smaller here."""
    augment_pool: bool = False
    """Whether the student meets crops and flips."""
    temperature: Positive = 1.0
    """T of the student's soft-label loss: 1 is what the published rows ran."""

    @property
    def num_pool_images(self) -> int:
        """A batch for every part of the training that is not skipped."""
        ends = [*range(self.sample_every, self.num_steps, self.sample_every), self.num_steps]
        num_batches = len([end for end in ends if end > self.skip_steps])
        return int(self.batch_size) * num_batches

    def scaled(self, budget: float) -> Self:
        """Scale the generator's steps; the pool keeps its size as long as steps allow."""
        steps = scaled_count(self.num_steps, budget)
        every = scaled_count(self.sample_every, budget)
        skipped = min(round(self.skip_steps * budget), steps - 1)
        return self.model_copy(
            update={"num_steps": steps, "sample_every": every, "skip_steps": skipped}
        )

    @model_validator(mode="after")
    def _some_steps_are_kept(self) -> Self:
        if self.skip_steps >= self.num_steps:
            raise PydanticCustomError(
                "cross_field",
                "skips all {steps} steps: no image would be left",
                {"key": "skip_steps", "steps": self.num_steps},
            )
        return self


class Fast(MethodBlock):
    """FastDFKD (AAAI 2022): a meta-generator that needs a few steps a batch."""

    needs_batch_norm: ClassVar[bool] = True
    of_students: ClassVar[frozenset[str]] = frozenset({"temperature", "adversarial_weight"})

    latent_dim: Count = 256
    generator_width: Count = 64
    """Channels of the generator's last block (ngf)."""
    batch_size: BatchSize = 256
    """Images synthesised a call."""
    num_steps: Count = 10
    """Inner steps a call (K)."""
    generator_learning_rate: Positive = 2e-3
    latent_learning_rate: Positive = 0.01
    bn_weight: NonNegative = 10.0
    one_hot_weight: NonNegative = 0.4
    adversarial_weight: NonNegative = 1.1
    bn_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of earlier calls in the compared BN statistics."""
    warmup_calls: Count = 20
    """Calls before the student starts: the pool of the substitute stage."""
    meta_update: Literal["fomaml", "reptile", "none"] = "fomaml"
    reptile_scale: Positive = 67.0
    """Factor on the reptile meta-gradient."""
    reset_after_calls: Count | None = 120
    """Re-initialise the generator's first layers this many calls after warm-up; null: never."""
    temperature: Positive = 20.0
    """T of the student's soft-label loss."""

    @property
    def num_pool_images(self) -> int:
        """A batch for every call of the warm-up."""
        return self.warmup_calls * self.batch_size

    @property
    def num_first_images(self) -> int:
        """The first epoch begins with a call."""
        return self.batch_size

    def scaled(self, budget: float) -> Self:
        """Scale the calls without a student; those with one go with the student's epochs."""
        calls, steps = scaled_calls(self.warmup_calls, self.num_steps, budget)
        reset = self.reset_after_calls and scaled_count(self.reset_after_calls, budget)
        update = {"warmup_calls": calls, "num_steps": steps, "reset_after_calls": reset}
        return self.model_copy(update=update)


class Cmi(MethodBlock):
    """CMI (IJCAI 2021): inversion through a fresh generator a call, and contrast for diversity."""

    needs_batch_norm: ClassVar[bool] = True
    of_students: ClassVar[frozenset[str]] = frozenset({"temperature", "adversarial_weight"})

    latent_dim: Count = 256
    generator_width: Count = 64
    batch_size: BatchSize = 256
    """Images synthesised a call."""
    num_steps: Count = 200
    """Steps a call (K)."""
    learning_rate: Positive = 1e-3
    """Of generator, latents and projection head."""
    bn_weight: NonNegative = 1.0
    one_hot_weight: NonNegative = 1.0
    adversarial_weight: NonNegative = 0.5
    contrastive_weight: NonNegative = 0.8
    contrastive_temperature: Positive = 0.2
    projection_dim: Count = 256
    memory_size: Count = 40_960
    """Earlier images whose features are remembered."""
    num_negatives: Count = 4096
    """Of these, drawn for each step."""
    warmup_calls: Count = 200
    """Calls without a student: the pool of the substitute stage."""
    temperature: Positive = 20.0
    """T of the student's soft-label loss."""

    @property
    def num_pool_images(self) -> int:
        """A batch for every call without a student."""
        return self.warmup_calls * self.batch_size

    @property
    def num_first_images(self) -> int:
        """The first epoch begins with a call."""
        return self.batch_size

    def scaled(self, budget: float) -> Self:
        """Scale the calls without a student; those with one go with the student's epochs."""
        calls, steps = scaled_calls(self.warmup_calls, self.num_steps, budget)
        return self.model_copy(update={"warmup_calls": calls, "num_steps": steps})

    @model_validator(mode="after")
    def _memory_holds_a_batch(self) -> Self:
        if self.memory_size < self.batch_size:
            raise PydanticCustomError(
                "cross_field",
                "has to hold a batch of {batch_size}",
                {"key": "memory_size", "batch_size": self.batch_size},
            )
        return self


class DeepInv(MethodBlock):
    """DeepInversion, adaptive (CVPR 2020): pixels optimised straight from noise."""

    needs_batch_norm: ClassVar[bool] = True
    of_students: ClassVar[frozenset[str]] = frozenset({"temperature", "adversarial_weight"})

    batch_size: BatchSize = 256
    """Images synthesised a call."""
    num_steps: Count = 1000
    """Steps a call at full resolution (K)."""
    low_resolution_steps: Annotated[int, Field(ge=0)] = 0
    """Steps before these through a 2 x 2 average pool."""
    learning_rate: Positive = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up of the learning rate."""
    bn_weight: NonNegative = 10.0
    first_bn_factor: Positive = 1.0
    """On the first BatchNorm layer's share of R_bn."""
    one_hot_weight: NonNegative = 1.0
    adversarial_weight: NonNegative = 1.0
    """Of the competition with the student."""
    js_temperature: Positive = 3.0
    js_floor: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Clamp of the competition's probabilities; 0.01 in the public code."""
    tv_l1_weight: NonNegative = 0.0
    tv_l2_weight: NonNegative = 0.0
    l2_weight: NonNegative = 0.0
    jitter_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.125
    """Largest roll, as a share of the image's side."""
    warmup_calls: Count = 200
    """Calls without a student: the pool of the substitute stage."""
    temperature: Positive = 20.0
    """T of the student's soft-label loss."""

    @property
    def num_pool_images(self) -> int:
        """A batch for every call without a student."""
        return self.warmup_calls * self.batch_size

    @property
    def num_first_images(self) -> int:
        """The first epoch begins with a call."""
        return self.batch_size

    def scaled(self, budget: float) -> Self:
        """Scale the calls without a student; phases of a call keep their shares of its steps."""
        calls, steps = scaled_calls(self.warmup_calls, self.num_steps, budget)
        share = steps / self.num_steps
        update = {
            "warmup_calls": calls,
            "num_steps": steps,
            "low_resolution_steps": round(self.low_resolution_steps * share),
            "lr_warmup_steps": min(round(self.lr_warmup_steps * share), steps - 1),
        }
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.lr_warmup_steps >= self.num_steps:
            raise PydanticCustomError(
                "cross_field",
                "has to be shorter than the {num_steps} steps",
                {"key": "lr_warmup_steps", "num_steps": self.num_steps},
            )
        return self


class Mosaick(MethodBlock):
    """MosaicKD (NeurIPS 2021): a generator that makes foreign patches into the teacher's world."""

    num_selected: Count
    """Open-world images kept, those the teacher is least sure of."""
    latent_dim: Count = 100
    generator_width: Count = 64
    discriminator_width: Count = 128
    batch_size: BatchSize = 256
    """Images of a step of generator and discriminator."""
    learning_rate: Positive = 1e-3
    """Of generator and discriminator."""
    adversarial_weight: NonNegative = 1.0
    align_weight: NonNegative = 1.0
    local_weight: NonNegative = 1.0
    balance_weight: NonNegative = 10.0
    warmup_steps: Count = 2000
    """Steps without a student, in the substitute stage."""
    num_samples: Count = 25_000
    """Images of the warmed-up generator that join the pool."""
    distillation_steps_per_game_step: Count = 5
    """The student's steps for each step of generator and discriminator."""
    cosine_steps: Count | None = None
    """Length of their cosine schedule in steps after the warm-up; null: constant rates."""
    temperature: Positive = 1.0
    """T of the student's soft-label loss; the authors' default."""
    score_batch_size: Count = 512
    open_world: OpenWorld = OpenWorld()
    """The unlabelled images to choose from."""

    def scaled(self, budget: float) -> Self:
        """Scale the steps of the game."""
        steps = scaled_count(self.warmup_steps, budget)
        cosine = self.cosine_steps and scaled_count(self.cosine_steps, budget)
        return self.model_copy(update={"warmup_steps": steps, "cosine_steps": cosine})

    @property
    def num_pool_images(self) -> int:
        """The chosen images and the generator's."""
        return self.num_selected + self.num_samples


class Dfnd(MethodBlock):
    """DFND (CVPR 2021): the open-world images that the teacher is surest of."""

    num_selected: Count
    """Images kept of the open-world pool."""
    teacher_accuracy: Fraction | Literal["auto"] = "auto"
    """Diagonal a of the noise matrix; `auto`: as the teacher's card says."""
    temperature: Positive = 4.0
    noise_learning_rate: Positive = 1e-3
    """Adam's rate for the noise matrix."""
    score_batch_size: Count = 512
    open_world: OpenWorld = OpenWorld()
    """The unlabelled images to choose from."""

    @property
    def num_pool_images(self) -> int:
        """The chosen images."""
        return self.num_selected


class Noise(MethodBlock):
    """A control and no method: images of uniform noise, what any method has to beat."""

    num_images: BatchSize = 5000
    temperature: Positive = 4.0
    """T of the student's soft-label loss."""

    @property
    def num_pool_images(self) -> int:
        """All of them."""
        return self.num_images
