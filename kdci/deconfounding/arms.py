"""The arms of a comparison: what is done to a student beside the plain method. Torch-free.

An arm is a value: which dictionary it needs, what it changes of the compensation, how its
batches are drawn, whether its logits are adjusted. `vanilla` and `kdci` always run; the others are
asked for by `grid.arms`. Every arm shares seed, initial student and pool with its vanilla twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Strata = Literal["classes", "prototypes"]


@dataclass(frozen=True)
class Arm:
    """One way to de-confound a student, or a plain remedy it is measured against.

    Attributes:
        title: As tables name it.
        summary: One line that says what it is.
        dictionary: Whose dictionary it uses: the teacher's `own`, that of the `other` model, or
            none.
        compensated: Whether phi takes the place of f_S.
        changes: Values that replace those of the `compensation` block.
        strata: What batches are drawn evenly over; `chosen`: as `intervention.strata` says.
        capped: Whether `intervention.max_repeats` holds for how often an image is drawn.
        adjusted: Whether log proportions are added to the student's logits while training.
    """

    title: str
    summary: str
    dictionary: Literal["own", "other"] | None = None
    compensated: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    strata: Strata | Literal["chosen"] | None = None
    capped: bool = False
    adjusted: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """The keys of the `intervention` block that it reads."""
        read = {"strata": self.strata == "chosen", "max_repeats": self.capped, "tau": self.adjusted}
        return tuple(f"intervention.{name}" for name, is_read in read.items() if is_read)


ARMS: dict[str, Arm] = {
    "vanilla": Arm("vanilla", "the plain method"),
    "kdci": Arm("KDCI", "bias compensation with the pool's dictionary", "own", compensated=True),
    "kdci_random_lambda": Arm(
        "random lambda",
        "Table 4 (2): lambda is the softmax of fresh normal scores",
        "own",
        compensated=True,
        changes={"lambda_": "random"},
    ),
    "kdci_random_prototypes": Arm(
        "random z",
        "Table 4 (3): prototypes are normal, with their mean and deviation",
        "own",
        compensated=True,
        changes={"prototypes": "random"},
    ),
    "kdci_without_proportions": Arm(
        "w/o P(z)",
        "Table 4 (4): the factor P(z) is dropped",
        "own",
        compensated=True,
        changes={"proportions": "none"},
    ),
    "kdci_other": Arm(
        "other Z",
        "Table 5: the dictionary of another pre-trained model",
        "other",
        compensated=True,
    ),
    "class_balanced": Arm(
        "class-balanced",
        "batches drawn evenly over the teacher's classes",
        strata="classes",
    ),
    "prototype_balanced": Arm(
        "prototype-balanced",
        "batches drawn evenly over the dictionary's prototypes",
        "own",
        strata="prototypes",
    ),
    "stratified": Arm(
        "stratified",
        "batches drawn evenly over strata, with a cap on how often an image repeats",
        "own",
        strata="chosen",
        capped=True,
    ),
    "logit_adjusted": Arm(
        "logit adjustment",
        "log class proportions added to the student's logits while training",
        adjusted=True,
    ),
    "kdci_stratified": Arm(
        "KDCI + strata",
        "bias compensation on batches drawn as `stratified` does, with the P(z) that is drawn",
        "own",
        compensated=True,
        # P(z) of the draw is near even, which `scale: shift` would take for nothing to do.
        changes={"scale": 1.0},
        strata="chosen",
        capped=True,
    ),
}
"""Every arm by its key; `vanilla` first, what is measured against it after."""

BASE_ARMS = ("vanilla", "kdci")
"""The two that run for every method."""
OTHER_ARM = "kdci_other"
"""The one that needs another model's dictionary: `grid.others` asks for it."""
FURTHER_ARMS = tuple(name for name in ARMS if name not in (*BASE_ARMS, OTHER_ARM))
"""What `grid.arms` may ask for."""


def arm_title(name: str) -> str:
    """Return an arm's name as tables write it."""
    return ARMS[name].title if name in ARMS else name
