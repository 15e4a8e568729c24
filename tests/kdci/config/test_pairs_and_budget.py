"""Pairs in the place of a product, values of a pair, and a budget that scales steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.config.recipes import scaled_calls, scaled_count, scaled_epochs
from kdci.store.layout import cells
from pipelines.params.presets import preset_file

PAIRS = [
    {"teacher": "vgg-11", "student": "wrn-10-1"},
    {"teacher": "wrn-16-1", "student": "wrn-10-1"},
    {"teacher": "wrn-16-1", "student": "resnet-18"},
]


@pytest.fixture
def tree() -> dict[str, Any]:
    return copy.deepcopy(read_yaml(preset_file("digits-smoke")))


@pytest.fixture
def paired(tree: dict[str, Any]) -> dict[str, Any]:
    tree["grid"] |= {"teachers": ["vgg-11", "wrn-16-1"], "students": [], "pairs": PAIRS}
    return tree


def problems(tree: dict[str, Any]) -> dict[str, str]:
    """Return what is refused, by dotted key."""
    with pytest.raises(ValidationError) as raised:
        Params.model_validate(tree)
    found = {}
    for error in raised.value.errors():
        place = [*map(str, error["loc"]), str(error.get("ctx", {}).get("key", ""))]
        found[".".join(filter(None, place))] = error["msg"]
    return found


# -- pairs ---------------------------------------------------------------------------------------


def test_cells_are_of_the_listed_pairs_alone(paired: dict[str, Any]) -> None:
    grid = Params.model_validate(paired).grid
    found = [(cell.teacher, cell.student) for cell in cells(grid)]
    assert list(dict.fromkeys(found)) == [(pair["teacher"], pair["student"]) for pair in PAIRS]
    each = len(grid.methods) * 2 * len(grid.seeds)
    assert len(found) == 3 * each


def test_a_product_lists_every_pair(tree: dict[str, Any]) -> None:
    tree["grid"] |= {"teachers": ["vgg-11", "wrn-16-1"], "students": ["wrn-10-1", "resnet-18"]}
    assert Params.model_validate(tree).grid.all_pairs == (
        ("vgg-11", "wrn-10-1"),
        ("vgg-11", "resnet-18"),
        ("wrn-16-1", "wrn-10-1"),
        ("wrn-16-1", "resnet-18"),
    )


@pytest.mark.parametrize(
    ("edits", "key", "words"),
    [
        ({"students": ["wrn-10-1"]}, "grid.students", "either students or pairs"),
        ({"pairs": []}, "grid.students", "lists no student"),
        ({"teachers": ["vgg-11"]}, "grid.pairs", "wrn-16-1 is none of grid.teachers"),
        ({"teachers": ["vgg-11", "wrn-16-1", "wrn-40-1"]}, "grid.teachers", "wrn-40-1 has no"),
        ({"pairs": [PAIRS[0], PAIRS[0]]}, "grid.pairs", "twice"),
        ({"others": ["vgg-11"]}, "grid.other_pairs", "says of each of pairs"),
        ({"other_pairs": [{**PAIRS[0], "other": "vgg-11"}]}, "grid.other_pairs", "go with"),
        (
            {
                "others": ["vgg-11"],
                "other_pairs": [{**pair, "other": "wrn-10-1"} for pair in PAIRS],
            },
            "grid.other_pairs",
            "just the models",
        ),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    paired: dict[str, Any], edits: dict[str, Any], key: str, words: str
) -> None:
    paired["grid"] |= edits
    assert words in problems(paired)[key]


def test_each_pair_borrows_from_its_own_lender(paired: dict[str, Any]) -> None:
    lenders = ["wrn-10-1", "vgg-11", "vgg-11"]
    paired["grid"] |= {
        "others": ["vgg-11", "wrn-10-1"],
        "other_pairs": [
            {**pair, "other": other} for pair, other in zip(PAIRS, lenders, strict=True)
        ],
    }
    paired["other"] = {"data": {"name": "digits5", "path": None}}
    paired["compensation"]["fusion"] = "residual"
    params = Params.model_validate(paired)
    found = [params.grid.other_of(**pair) for pair in PAIRS]
    assert found == lenders
    assert params.of_other().grid.teachers == ("vgg-11", "wrn-10-1")


# -- values of a pair ----------------------------------------------------------------------------


def test_values_differ_for_a_teacher_and_for_a_student(tree: dict[str, Any]) -> None:
    tree["methods"]["fast"] |= {
        "one_hot_weight": 0.4,
        "by_teacher": {"vgg-11": {"one_hot_weight": 0.5, "adversarial_weight": 1.0}},
        "by_student": {"resnet-18": {"adversarial_weight": 0.1}},
    }
    params = Params.model_validate(tree)

    def values(**pair: str) -> tuple[float, float]:
        block: Any = params.method("fast", **pair)
        return block.one_hot_weight, block.adversarial_weight

    plain = values()
    assert plain[0] == 0.4
    assert values(teacher="wrn-16-1") == plain
    assert values(teacher="vgg-11") == (0.5, 1.0)
    assert values(teacher="vgg-11", student="resnet-18") == (0.5, 0.1)
    assert values(teacher="wrn-16-1", student="resnet-18") == (0.4, 0.1)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        ({"by_teacher": {"vgg": {}}}, "by_teacher.vgg", "no backbone"),
        ({"by_teacher": {"vgg-11": {"weight": 1}}}, "by_teacher.vgg-11.weight", "no value"),
        (
            {"by_teacher": {"vgg-11": {"bn_weight": -1.0}}},
            "by_teacher.vgg-11.bn_weight",
            "greater than or equal to 0",
        ),
        (
            {"by_student": {"vgg-11": {"bn_weight": 1.0}}},
            "by_student.vgg-11.bn_weight",
            "belongs to the pool",
        ),
    ],
)
def test_overrides_are_checked(
    tree: dict[str, Any], overrides: dict[str, Any], key: str, words: str
) -> None:
    tree["methods"]["fast"] |= overrides
    assert words in problems(tree)[f"methods.fast.{key}"]


# -- budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "steps", "budget", "expected"),
    [
        (200, 400, 1.0, (200, 400)),
        (200, 400, 0.1, (20, 400)),
        (200, 400, 0.005, (1, 400)),
        (200, 400, 1e-3, (1, 80)),
        (200, 400, 5 / 80_000, (1, 5)),
        (200, 400, 1e-9, (1, 1)),
        (20, 10, 2.0, (40, 10)),
        (20, 10, 0.12, (2, 10)),
        (20, 10, 0.06, (1, 10)),
        (20, 10, 0.02, (1, 4)),
    ],
)
def test_calls_shrink_before_their_steps(
    calls: int, steps: int, budget: float, expected: tuple[int, int]
) -> None:
    assert scaled_calls(calls, steps, budget) == expected


@pytest.mark.parametrize(
    ("epochs", "steps", "budget", "expected"),
    [
        (200, 400, 0.1, (20, 400)),
        (33, 2344, 0.05, (2, 1934)),  # of 77,352 steps 3,868 are a twentieth
        (3, 10, 0.5, (2, 8)),
        (1, 10, 1.2, (2, 6)),
        (200, 400, 5 / 80_000, (1, 5)),
        (200, 400, 1e-9, (1, 1)),
        (4, 50, 2.0, (8, 50)),
    ],
)
def test_epochs_are_made_up_for_by_their_steps(
    epochs: int, steps: int, budget: float, expected: tuple[int, int]
) -> None:
    assert scaled_epochs(epochs, steps, budget) == expected


@pytest.mark.parametrize(("budget", "expected"), [(2.0, 32), (1.2, 19), (0.1, 2), (1e-6, 1)])
def test_a_count_scales_either_way(budget: float, expected: int) -> None:
    assert scaled_count(16, budget) == expected


def test_a_larger_budget_trains_a_generator_longer_and_keeps_its_pool(
    tree: dict[str, Any],
) -> None:
    """DAFL of 800 steps, a batch every 10 after 100; Mosaick of 500."""
    tree = copy.deepcopy(read_yaml(preset_file("digits")))
    whole = Params.model_validate(tree)
    tree["budget"] = 2.0
    double = Params.model_validate(tree)
    dafl: Any = double.method("dafl")
    assert (dafl.num_steps, dafl.sample_every, dafl.skip_steps) == (1600, 20, 200)
    assert dafl.num_pool_images == whole.method("dafl").num_pool_images
    mosaick: Any = double.method("mosaick")
    assert mosaick.warmup_steps == 1000


def test_a_budget_scales_pools_and_students_and_no_teacher() -> None:
    tree = copy.deepcopy(read_yaml(preset_file("table1-cifar10")))
    whole = Params.model_validate(tree)
    tree["budget"] = 0.1
    tenth = Params.model_validate(tree)
    assert tenth.teacher == whole.teacher
    for method in whole.grid.methods:
        assert tenth.recipe(method).num_steps == pytest.approx(
            whole.recipe(method).num_steps / 10, rel=0.1
        )
        assert tenth.recipe(method).batch_size == whole.recipe(method).batch_size
    dafl: Any = tenth.method("dafl")
    assert (dafl.num_steps, dafl.sample_every) == (1600, 8)
    assert dafl.num_pool_images == whole.method("dafl").num_pool_images
    fast: Any = tenth.method("fast", teacher="vgg-11")
    assert (fast.warmup_calls, fast.num_steps, fast.reset_after_calls) == (2, 10, 12)
    assert fast.adversarial_weight == 1.0
    deepinv: Any = tenth.method("deepinv")
    assert (deepinv.warmup_calls, deepinv.num_steps) == (20, 2000)
    mosaick: Any = tenth.method("mosaick")
    assert (mosaick.warmup_steps, mosaick.cosine_steps) == (200, 3920)
    assert tenth.method("dfnd") == whole.method("dfnd")


@pytest.mark.parametrize("budget", [0.3, 1e-3, 1e-7])
def test_a_scaled_block_is_still_a_lawful_one(budget: float) -> None:
    for name in ("table1-cifar10", "table2", "table3"):
        tree = copy.deepcopy(read_yaml(preset_file(name)))
        tree["budget"] = budget
        params = Params.model_validate(tree)
        for method in params.grid.methods:
            block = params.method(method)
            type(block).model_validate(block.model_dump())
            type(params.recipe(method)).model_validate(params.recipe(method).model_dump())


@pytest.mark.parametrize("budget", [0, -1.0, 101, float("nan"), "half"])
def test_a_senseless_budget_is_refused(tree: dict[str, Any], budget: object) -> None:
    tree["budget"] = budget
    assert "budget" in {key.split(".")[0] for key in problems(tree)}


# -- data that is not there ----------------------------------------------------------------------

FACTS = {"num_classes": 7, "image_size": 24, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}


def test_a_teacher_without_any_data_is_enough(tree: dict[str, Any]) -> None:
    tree["data"] = {"name": "custom", "path": None, "test": None, "facts": FACTS}
    tree["teacher"]["artifact"] = "teachers/{dataset}/{teacher}"
    params = Params.model_validate(tree)
    assert params.teacher.artifact_of("vgg-11", "custom") == "teachers/custom/vgg-11"
    spec = params.data.spec
    assert (spec.num_classes, spec.image_size, spec.mean) == (7, 24, (0.5, 0.5, 0.5))
    assert spec.class_names == tuple("0123456")


@pytest.mark.parametrize(
    ("data", "key", "words"),
    [
        ({"name": "custom", "path": "x"}, "data.facts", "needs the dataset's facts"),
        ({"name": "cifar10", "path": "x", "facts": FACTS}, "data.facts", "custom dataset alone"),
        ({"name": "cifar10"}, "data.path", "or a finished teacher.artifact"),
        (
            {"name": "custom", "path": "x", "facts": {**FACTS, "mean": [0.5]}},
            "data.facts.mean",
            "one a channel",
        ),
        (
            {"name": "custom", "path": "x", "facts": {**FACTS, "mean": [123.7, 0.5, 0.5]}},
            "data.facts.mean.0",
            "less than or equal to 1",
        ),
        (
            {"name": "custom", "path": "x", "facts": {**FACTS, "std": [0.2, 0.2, 58.4]}},
            "data.facts.std.2",
            "less than or equal to 1",
        ),
        (
            {"name": "custom", "path": "x", "facts": {**FACTS, "class_names": ["a", "b"]}},
            "data.facts.class_names",
            "needs 7 different names",
        ),
        ({"name": "digits", "path": "x"}, "data.path", "takes no path"),
        ({"name": "cifar"}, "data.name", "unknown dataset"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    tree: dict[str, Any], data: dict[str, Any], key: str, words: str
) -> None:
    tree["data"] = data
    assert words in problems(tree)[key]


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"content": "0" * 64}, "teacher.artifact names none"),
        ({"content": "0" * 64, "artifact": "x"}, "the grid has several"),
        ({"content": "0" * 63, "artifact": "x"}, "pattern"),
    ],
)
def test_a_content_hash_is_of_one_finished_teacher(
    paired: dict[str, Any], teacher: dict[str, Any], words: str
) -> None:
    paired["teacher"] |= teacher
    assert words in problems(paired)["teacher.content"]


def test_without_data_there_is_nothing_to_test_on(tree: dict[str, Any]) -> None:
    tree["data"] = {"name": "cifar10", "path": None}
    tree["teacher"]["artifact"] = "teachers/mine"
    assert "set it to null" in problems(tree)["data.test"]


# -- open worlds ---------------------------------------------------------------------------------


def test_open_worlds_mix_sources(tree: dict[str, Any]) -> None:
    parts = [{"source": "folder", "path": "a", "num_images": 0}, {"source": "photographs"}]
    tree["methods"]["dfnd"]["open_world"] = {"source": "mixed", "sources": parts}
    block: Any = Params.model_validate(tree).method("dfnd")
    assert [(part.source, part.path) for part in block.open_world.parts] == [
        ("folder", "a"),
        ("photographs", None),
    ]


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"source": "mixed"}, "sources"),
        ({"source": "mixed", "path": "x", "sources": [{"source": "photographs"}]}, "path"),
        ({"source": "folder", "path": "x", "sources": [{"source": "photographs"}]}, "sources"),
        ({"source": "mixed", "sources": [{"source": "folder"}]}, "sources.0.path"),
        ({"source": "folder"}, "path"),
        ({"source": "photographs", "path": "x"}, "path"),
        ({"source": "photographs", "num_images": 0}, "num_images"),
        ({"source": "photographs", "num_images": -1}, "num_images"),
    ],
)
def test_open_worlds_that_do_not_fit_are_refused(
    tree: dict[str, Any], block: dict[str, Any], key: str
) -> None:
    tree["methods"]["dfnd"]["open_world"] = block
    assert f"methods.dfnd.open_world.{key}" in problems(tree)
