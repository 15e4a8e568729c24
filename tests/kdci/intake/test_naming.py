"""Foreign names and their places."""

from __future__ import annotations

import pytest

from kdci.intake.naming import match_names

EXPECTED = ("conv1.weight", "layer1.0.shortcut.0.weight", "linear.weight", "linear.bias")


def test_own_names_stay() -> None:
    naming = match_names(EXPECTED, EXPECTED)
    assert naming.targets == {name: name for name in EXPECTED}
    assert (naming.prefixes, naming.renamed, naming.left_over, naming.missing) == ((), 0, (), ())


@pytest.mark.parametrize(
    "prefixes",
    [("module.",), ("model.",), ("module.", "model."), ("_orig_mod.", "module.", "backbone.")],
)
def test_prefixes_are_taken_off(prefixes: tuple[str, ...]) -> None:
    naming = match_names(["".join(prefixes) + name for name in EXPECTED], EXPECTED)
    assert naming.prefixes == prefixes
    assert list(naming.targets.values()) == list(EXPECTED)
    assert naming.renamed == 0


def test_a_prefix_that_not_all_have_stays() -> None:
    naming = match_names(["module.conv1.weight", "linear.weight"], EXPECTED)
    assert naming.prefixes == ()
    assert naming.left_over == ("module.conv1.weight",)


def test_a_prefix_that_the_backbone_has_too_stays() -> None:
    expected = ("model.conv.weight", "model.fc.weight")
    assert match_names(expected, expected).prefixes == ()
    wrapped = match_names([f"module.{name}" for name in expected], expected)
    assert wrapped.prefixes == ("module.",) and not wrapped.missing


def test_other_spellings() -> None:
    found = ("conv1.weight", "layer1.0.downsample.0.weight", "fc.weight", "fc.bias")
    naming = match_names(found, EXPECTED)
    assert list(naming.targets.values()) == list(EXPECTED)
    assert naming.renamed == 3
    back = match_names(EXPECTED, found)
    assert list(back.targets.values()) == list(found)


def test_two_spellings_of_one_place_leave_one_over() -> None:
    naming = match_names(["linear.weight", "fc.weight"], ["linear.weight"])
    assert naming.targets == {"linear.weight": "linear.weight"}
    assert naming.left_over == ("fc.weight",)
    # Whichever comes first: a name of the backbone's own is not taken by another's.
    assert match_names(["fc.weight", "linear.weight"], ["linear.weight"]).left_over == (
        "fc.weight",
    )


def test_profilers_counters_are_left_out() -> None:
    naming = match_names([*EXPECTED, "total_ops", "layer1.total_params"], EXPECTED)
    assert naming.left_over == () and len(naming.targets) == len(EXPECTED)
