"""The methods' params blocks: what makes or chooses substitution images, a class a method.

The fields of a block are the keyword arguments of the method's source, except `open_world`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from kdci.config_block import Block, Count, Folder, Fraction, NonNegative, Positive


class OpenWorld(Block):
    """The unlabelled images that sampling-based methods choose from."""

    source: Literal["photographs", "parquet", "folder"] = "photographs"
    """`photographs`: crops of the two photographs that come with scikit-learn."""
    path: Folder | None = None
    """Folder of Parquet or image files; photographs need none."""
    num_images: Annotated[int, Field(ge=0)] = 20_000
    """Number of images taken; 0: all there are, of Parquet and folders."""

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if (self.source == "photographs") != (self.path is None):
            wants = "takes no path" if self.source == "photographs" else "needs a path"
            raise PydanticCustomError(
                "cross_field",
                "{source} {wants}",
                {"key": "path", "source": self.source, "wants": wants},
            )
        if self.source == "photographs" and self.num_images == 0:
            raise PydanticCustomError(
                "cross_field",
                "photographs have crops without end: say how many",
                {"key": "num_images"},
            )
        return self


class Fast(Block):
    """FastDFKD (AAAI 2022): a meta-generator that needs a few steps a batch."""

    latent_dim: Count = 256
    generator_width: Count = 64
    """Channels of the generator's last block (ngf)."""
    batch_size: Annotated[int, Field(ge=2)] = 256
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


class Dfnd(Block):
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
