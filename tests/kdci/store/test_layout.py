from __future__ import annotations

from pathlib import Path

from kdci.config.params import Grid
from kdci.deconfounding.arms import ARMS, BASE_ARMS, FURTHER_ARMS, OTHER_ARM
from kdci.store.layout import Cell, Layout, all_cells, cells, control_cells, shift_cells

GRID = Grid(
    teachers=("wrn-40-2", "vgg-11"),
    students=("wrn-16-1",),
    methods=("fast", "dfnd"),
    pool_seeds=(0, 4),
    seeds=(1, 2, 3),
)
CELL = Cell("wrn-40-2", "wrn-16-1", "fast", "kdci", 4, 2)
LAYOUT = Layout(Path("/project"), "paper")


def test_cells_are_the_product_each_once() -> None:
    found = cells(GRID)
    expected = {
        Cell(teacher, "wrn-16-1", method, variant, pool_seed, seed)
        for teacher in ("wrn-40-2", "vgg-11")
        for method in ("fast", "dfnd")
        for variant in BASE_ARMS
        for pool_seed in (0, 4)
        for seed in (1, 2, 3)
    }
    assert len(found) == len(expected) == 48 and set(found) == expected
    assert len({cell.name for cell in found}) == 48
    assert len({LAYOUT.student(cell) for cell in found}) == 48


def test_cells_come_in_the_order_of_the_lists_vanilla_first() -> None:
    found = cells(GRID)
    assert found[0] == Cell("wrn-40-2", "wrn-16-1", "fast", "vanilla", 0, 1)
    assert [cell.seed for cell in found[:6]] == [1, 2, 3, 1, 2, 3]
    assert [cell.variant for cell in found[:12]] == ["vanilla"] * 6 + ["kdci"] * 6
    assert found[-1] == Cell("vgg-11", "wrn-16-1", "dfnd", "kdci", 4, 3)


def test_controls_have_one_vanilla_student_a_pair_of_the_first_seeds() -> None:
    assert control_cells(GRID) == []
    controlled = GRID.model_copy(update={"controls": ("noise",)})
    expected = [
        Cell(teacher, "wrn-16-1", "noise", "vanilla", 0, 1) for teacher in ("wrn-40-2", "vgg-11")
    ]
    assert control_cells(controlled) == expected
    assert cells(controlled) == cells(GRID)
    assert all_cells(controlled) == [*cells(GRID), *expected]


def test_further_arms_come_after_vanilla_and_kdci_the_other_dictionary_last() -> None:
    grid = GRID.model_copy(update={"arms": ("logit_adjusted", "stratified"), "others": ("vgg-11",)})
    expected = ("vanilla", "kdci", "logit_adjusted", "stratified", OTHER_ARM)
    assert grid.method_arms == expected
    assert tuple(dict.fromkeys(cell.variant for cell in cells(grid))) == expected
    assert len(cells(grid)) == 5 * len(cells(GRID)) // 2


def test_every_arm_can_be_asked_for_in_one_way() -> None:
    assert {*BASE_ARMS, *FURTHER_ARMS, OTHER_ARM} == set(ARMS)
    assert len(BASE_ARMS) + len(FURTHER_ARMS) + 1 == len(ARMS)
    assert not ARMS["vanilla"].compensated and ARMS["vanilla"].dictionary is None


def test_known_shifts_have_the_arms_that_are_asked_for_on_every_seed() -> None:
    assert shift_cells(GRID) == []
    grid = GRID.model_copy(
        update={"shifts": ("blur", "tail"), "shift_arms": ("vanilla", "class_balanced")}
    )
    found = shift_cells(grid)
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 3
    assert found[0] == Cell("wrn-40-2", "wrn-16-1", "blur", "vanilla", 0, 1)
    assert cells(grid) == cells(GRID)
    assert all_cells(grid)[-len(found) :] == found
    assert grid.sources == ("fast", "dfnd", "blur", "tail")


def test_the_other_model_has_places_of_its_own() -> None:
    other = LAYOUT.other
    assert other.dictionary("vgg-11", "fast", 0) != LAYOUT.dictionary("vgg-11", "fast", 0)
    assert other.teacher("vgg-11") == Path("/project/artifacts/paper/other/teachers/vgg-11")
    timing = other.timing(other.teacher("vgg-11"))
    assert timing == Path("/project/artifacts/paper/other/timings/teachers/vgg-11.json")
    assert other.work == LAYOUT.work


def test_a_cell_says_its_name_and_fields() -> None:
    assert CELL.name == "wrn-40-2/wrn-16-1/fast/kdci/pool4-seed2"
    assert CELL.replicate == "pool4-seed2"
    assert CELL.asdict() == {
        "teacher": "wrn-40-2",
        "student": "wrn-16-1",
        "method": "fast",
        "variant": "kdci",
        "pool_seed": 4,
        "seed": 2,
    }


def test_paths() -> None:
    artifacts = Path("/project/artifacts/paper")
    assert LAYOUT.artifacts == artifacts
    assert LAYOUT.report == Path("/project/report")
    assert LAYOUT.work == Path("/project/.kdci")
    assert LAYOUT.teacher("vgg-11") == artifacts / "teachers/vgg-11"
    assert LAYOUT.pool("vgg-11", "fast", 4) == artifacts / "pools/vgg-11/fast/pool4"
    dictionary = LAYOUT.dictionary("vgg-11", "fast", 4)
    assert dictionary == artifacts / "dictionaries/vgg-11/fast/pool4"
    pair = "wrn-40-2/wrn-16-1/fast"
    assert LAYOUT.student(CELL) == artifacts / "students" / pair / "kdci/pool4-seed2"
    assert LAYOUT.student(CELL).is_relative_to(LAYOUT.students("wrn-40-2", "wrn-16-1", "fast"))
    evaluation = LAYOUT.evaluation("wrn-40-2", "wrn-16-1", "fast")
    assert evaluation == artifacts / "evaluations" / pair


def test_timings_lie_outside_of_what_they_time() -> None:
    artifact = LAYOUT.student(CELL)
    timing = LAYOUT.timing(artifact)
    assert timing.suffix == ".json" and not timing.is_relative_to(artifact)
    assert timing == LAYOUT.artifacts / "timings/students" / (
        "wrn-40-2/wrn-16-1/fast/kdci/pool4-seed2.json"
    )
    dotted = LAYOUT.timing(LAYOUT.artifacts / "teachers" / "net-1.5")
    assert dotted.name == "net-1.5.json"


def test_experiments_do_not_share_artifacts() -> None:
    other = Layout(Path("/project"), "digits")
    assert not other.artifacts.is_relative_to(LAYOUT.artifacts)
    assert other.teacher("vgg-11") != LAYOUT.teacher("vgg-11")
