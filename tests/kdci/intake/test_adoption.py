"""Which finished teachers the params may adopt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdci.config.catalog import DATASETS
from kdci.config.data import DataFacts
from kdci.errors import UserError
from kdci.intake.adoption import require_adoptable

CIFAR = DATASETS["cifar10"]
CUSTOM = DataFacts(
    num_classes=10, image_size=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)
).spec


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "backbone": "resnet-18",
        "num_classes": 10,
        "channels": 3,
        "image_size": 32,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        **changes,
    }


@pytest.mark.parametrize("spec", [CIFAR, CUSTOM])
def test_one_that_fits(spec) -> None:
    """Its normalisation is its own, whatever the catalog says of the dataset."""
    require_adoptable(facts(), "teachers/x", backbone="resnet-18", spec=spec)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"backbone": "resnet-34"}, "is a resnet-34, the grid asks for resnet-18"),
        ({"num_classes": 100}, "has num_classes 100, custom has 10"),
        ({"channels": 1}, "has channels 1"),
        ({"image_size": 64}, "has image_size 64"),
        ({"mean": [0.5, 0.5, 0.5]}, r"with mean \[0.5, 0.5, 0.5\], data.facts says \[0.5, 0.4"),
        ({"std": [0.2, 0.2, 0.21]}, "with std"),
    ],
)
def test_one_that_does_not(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=rf"^teacher.artifact: teachers/x .*{told}"):
        require_adoptable(facts(**changes), "teachers/x", backbone="resnet-18", spec=CUSTOM)


def test_rounding_is_no_difference() -> None:
    close = replace(CUSTOM, mean=(0.50004, 0.4, 0.3))
    require_adoptable(facts(), "teachers/x", backbone="resnet-18", spec=close)


class TestClassNames:
    """Of three classes in any order every shape fits."""

    NAMES = ("cat", "dog", "hare")

    def adopt(self, stated: tuple[str, ...], own: list[str] | None, **changes: Any) -> None:
        spec = DataFacts(
            num_classes=3,
            image_size=32,
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.2, 0.2),
            class_names=stated,
        ).spec
        of_card = facts(num_classes=3, **({} if own is None else {"class_names": own}))
        require_adoptable(
            of_card, "teachers/x", backbone="resnet-18", spec=replace(spec, **changes)
        )

    def test_the_same(self) -> None:
        self.adopt(self.NAMES, list(self.NAMES))

    def test_another_order(self) -> None:
        with pytest.raises(UserError, match=r"calls class 0 'cat', data.facts 'dog'") as caught:
            self.adopt(("dog", "cat", "hare"), list(self.NAMES))
        assert 'class_names: ["cat", "dog", "hare"]' in str(caught.value)
        assert len(caught.value.lines()) == 1

    def test_none_in_the_params(self) -> None:
        """The sorted order of folders would be taken for the teacher's."""
        with pytest.raises(UserError, match=r"states its class names.*data.facts.class_names"):
            self.adopt((), list(self.NAMES))

    def test_numbers_are_names_where_they_were_stated(self) -> None:
        self.adopt(("0", "1", "2"), ["0", "1", "2"])
        with pytest.raises(UserError, match="states its class names"):
            self.adopt((), ["0", "1", "2"])

    def test_none_on_the_card(self) -> None:
        self.adopt(self.NAMES, None)
        self.adopt((), None)

    def test_a_card_with_too_few(self) -> None:
        with pytest.raises(UserError, match="has other class names"):
            self.adopt(self.NAMES, ["cat", "dog"])

    def test_those_of_the_catalog_are_its_own(self) -> None:
        self.adopt(self.NAMES, ["0", "1", "2"], name="cifar10")
