"""The params blocks of what de-confounds a student, and of the pools whose shift is known."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from kdci.config.block import Block, Count, Folder, NonNegative, Positive

ShiftName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class Dictionary(Block):
    """The confounder dictionary Z: prototypes z_i and proportions P(z_i)."""

    space: Literal["logits", "probabilities", "features"] = "logits"
    """What of the teacher's predictions is clustered; features are the penultimate ones."""
    num_prototypes: Count = 10
    """N; empty clusters are dropped and the effective N is recorded."""
    artifact: Folder | None = None
    """Folder of another teacher's dictionary to use instead."""


class CompensationBlock(Block):
    """Bias compensation: lambda_i, F(z) and phi, with the ablations of Table 4 as values."""

    fusion: Literal["identity", "residual", "linear"] = "identity"
    """phi: f + F | f + W_g F | W_h f + W_g F."""
    scale: Positive | Literal["N", "shift"] = "shift"
    """Factor on F(z); `N` makes up for lambda and P(z) being about 1/N each, `shift` is N times
    the total-variation distance of P(z) from uniform."""
    hidden_dim: Count = 64
    """Width of the additive attention."""
    lambda_: Literal["learned", "random"] = Field(default="learned", alias="lambda")
    """`random`: the softmax of standard-normal scores, drawn anew at each step (Table 4)."""
    prototypes: Literal["kmeans", "random"] = "kmeans"
    """`random`: normal draws with the mean and the scale of those of k-means (Table 4)."""
    proportions: Literal["cluster", "uniform", "none", "centred", "log"] = "cluster"
    """Factor beside lambda: `cluster` P(z) itself; `uniform` 1/N; `none`: 1 (Table 4); `centred`
    P(z) - 1/N; `log` log(N P(z))."""
    initialisation: Literal["normal", "zero"] = "normal"
    """`zero`: W_t and W_g start at 0, so lambda is even and `residual` adds nothing."""
    rebuild: Positive | None = None
    """Build the dictionary anew each time the pool has grown by this share; null: never. Holds for
    the teacher's own dictionary without strata, whose P(z) would be that of the draw."""
    learning_rate: Positive | None = None
    """Rate of the module's parameter group; null: the student's."""


class Intervention(Block):
    """What the arms beside KDCI do: how batches are drawn, how logits are adjusted."""

    strata: Literal["classes", "prototypes"] = "classes"
    """What `stratified` and `kdci_stratified` draw their batches evenly over."""
    max_repeats: Annotated[float, Field(ge=1)] | None = None
    """Cap on how often these two draw an image for each time it would be drawn without; null: none.
    `class_balanced` and `prototype_balanced`, the plain remedies, have none."""
    tau: Positive = 1.0
    """Strength of `logit_adjusted`."""


class ShiftedPools(Block):
    """What the pools with a known shift have in common."""

    base: str
    """The method whose pool they are resampled from."""
    num_images: Annotated[int, Field(ge=2)]
    """Images of each that the student sees; held out is what the base's pool holds out."""
    temperature: Positive = 4.0
    """T of the student's soft-label loss."""


class Shift(Block):
    """A known shift: class imbalance, image quality, or both."""

    imbalance: Annotated[float, Field(ge=1)] = 1.0
    """Images of the most frequent class over those of the rarest; 1 is balanced."""
    blur: NonNegative = 0.0
    """Standard deviation of a Gaussian blur, in pixels."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise, of pixels in [0, 1]."""
    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the distance of pixels to their image's mean; 1: as they are."""
