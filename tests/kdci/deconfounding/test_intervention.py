from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from kdci.deconfounding.arms import ARMS
from kdci.deconfounding.compensation import Compensation
from kdci.deconfounding.intervention import Intervention, StoredDictionary
from kdci.deconfounding.logit_adjustment import LogitAdjustment
from kdci.deconfounding.strata import drawn_proportions
from kdci.errors import UserError
from kdci.models import PixelModel
from kdci.substitution.bank_source import BankSource

MakeModel = Callable[[int], PixelModel]

LOGITS = torch.eye(3)[torch.tensor([0, 0, 0, 0, 1, 2])]
SETTINGS = {"fusion": "identity", "scale": 1.0}
VANILLA = """
import sys
from kdci.deconfounding.arms import ARMS
from kdci.deconfounding.intervention import Intervention
vanilla = Intervention(ARMS["vanilla"], 3)
assert vanilla.correction({}, seed=0) is None
assert vanilla.rebuilder(None, None, growth=0.1, seed=0) is None
vanilla.stratify(None, None)
print(*(name for name in sys.modules if name.startswith(("kdci.deconfounding.", "torch"))))
"""


class Source:
    """Notes how it is told to draw."""

    bank = [0] * 6  # noqa: RUF012  # as long as the pool

    def __init__(self) -> None:
        self.caps: list[float] = []

    def stratify(self, stratum_of: object, *, max_repeats: float) -> None:
        self.caps.append(max_repeats)


def dictionary(*, adopted: bool = False) -> StoredDictionary:
    assignments = torch.tensor([0, 0, 1, 1, 1, 1], dtype=torch.int32)
    return StoredDictionary(
        torch.eye(3)[:2], torch.tensor([1 / 3, 2 / 3]), assignments, "logits", 2, adopted
    )


def intervention(arm: str, **values: Any) -> Intervention:
    known = {"logits_MK": LOGITS, "dictionary": dictionary(), "max_repeats": 2.0, **values}
    return Intervention(ARMS[arm], 3, **known)


def proportions(made: Intervention) -> Tensor:
    correction = made.correction(SETTINGS, seed=0)
    assert isinstance(correction, Compensation)
    return correction.factors_N


def source() -> Any:
    return cast("BankSource", Source())


def test_vanilla_loads_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", VANILLA], capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.split()) == [
        "kdci.deconfounding.arms",
        "kdci.deconfounding.intervention",
    ]


@pytest.mark.parametrize("arm", ARMS)
def test_what_takes_the_place_of_the_student(arm: str) -> None:
    found = intervention(arm).correction(SETTINGS, seed=0)
    kind = LogitAdjustment if ARMS[arm].adjusted else Compensation
    wanted = ARMS[arm].adjusted or ARMS[arm].compensated
    assert isinstance(found, kind) if wanted else found is None


def test_strata_change_the_proportions_to_those_that_are_drawn() -> None:
    assert proportions(intervention("kdci")).equal(dictionary().proportions_N)
    classes, assignments = LOGITS.argmax(dim=1), torch.tensor([0, 0, 1, 1, 1, 1])
    by_class = drawn_proportions(assignments, classes, max_repeats=2.0)
    by_prototype = drawn_proportions(assignments, assignments, max_repeats=2.0)
    assert proportions(intervention("kdci_stratified")).equal(by_class)
    chosen = intervention("kdci_stratified", strata="prototypes")
    assert proportions(chosen).equal(by_prototype)
    foreign = intervention("kdci_stratified", dictionary=dictionary(adopted=True))
    assert proportions(foreign).equal(dictionary().proportions_N)


@pytest.mark.parametrize(
    ("arm", "caps"),
    [
        ("vanilla", []),
        ("kdci", []),
        ("class_balanced", [float("inf")]),
        ("prototype_balanced", [float("inf")]),
        ("stratified", [2.0]),
    ],
)
def test_how_batches_are_drawn(arm: str, caps: list[float], tiny_model: MakeModel) -> None:
    drawn = source()
    intervention(arm).stratify(drawn, tiny_model(0))
    assert drawn.caps == caps


def test_the_prototypes_of_another_teacher_are_no_strata(tiny_model: MakeModel) -> None:
    made = intervention("prototype_balanced", dictionary=dictionary(adopted=True))
    with pytest.raises(UserError, match="or no such arm"):
        made.stratify(source(), tiny_model(0))


@pytest.mark.parametrize(
    ("arm", "growth", "adopted", "rebuilds"),
    [
        ("kdci", 0.5, False, True),
        ("kdci", None, False, False),
        ("kdci", 0.5, True, False),
        ("kdci_other", 0.5, False, False),
        ("kdci_stratified", 0.5, False, False),
        ("prototype_balanced", 0.5, False, False),
    ],
)
def test_when_the_dictionary_is_built_anew(
    arm: str, growth: float | None, *, adopted: bool, rebuilds: bool, tiny_model: MakeModel
) -> None:
    made = intervention(arm, dictionary=dictionary(adopted=adopted))
    rebuilder = made.rebuilder(source(), tiny_model(0), growth=growth, seed=0)
    assert (rebuilder is not None) == rebuilds
