"""`kdci check` finds what would stop the pipeline, before anything runs."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.graph.build import graph_of
from kdci.store import artifacts
from kdci.store.layout import Layout
from pipelines.checking.checks import find_problems, summary
from pipelines.params.presets import FOLDER

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def tree() -> dict[str, Any]:
    return copy.deepcopy(read_yaml(FOLDER / "digits-smoke.yaml"))


def told(tree: dict[str, Any], root: Path) -> dict[str, str]:
    """Return what is told, by subject."""
    params = Params.model_validate(tree)
    problems = find_problems(params, Layout(root, params.preset))
    assert len({problem.subject for problem in problems}) == len(problems)
    return {problem.subject: problem.what for problem in problems}


def test_a_good_project_has_no_problem_and_gets_no_file(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    assert told(tree, tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_a_teachers_own_values_are_looked_at(tree: dict[str, Any], tmp_path: Path) -> None:
    name = tree["grid"]["teachers"][0]
    tree["methods"]["dfnd"]["by_teacher"] = {name: {"num_selected": 201}, "vgg-11": {}}
    assert set(told(tree, tmp_path)) == {"methods.dfnd.num_selected"}
    tree["methods"]["dfnd"] |= {"num_selected": 201, "by_teacher": {name: {"num_selected": 200}}}
    assert told(tree, tmp_path) == {}


def test_every_problem_is_told_in_one_go(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["teacher"]["batch_size"] = 899  # the training half of the digits has 898
    tree["methods"]["dfnd"]["num_selected"] = 201  # of 200
    tree["dictionary"]["num_prototypes"] = 31  # fast: 2 calls of 16 less the hold-out of 2
    tree["recipes"]["dfnd"]["batch_size"] = 192  # 201 less 10
    assert set(told(tree, tmp_path)) == {
        "teacher.batch_size",
        "methods.dfnd.num_selected",
        "dictionary.num_prototypes",
        "recipes.dfnd.batch_size",
    }


@pytest.mark.parametrize(
    ("key", "value", "subject"),
    [
        (("teacher", "batch_size"), 898, None),
        (("methods", "dfnd", "num_selected"), 200, None),
        (("dictionary", "num_prototypes"), 30, None),
        (("dictionary", "num_prototypes"), 31, "dictionary.num_prototypes"),
        (("recipes", "fast", "batch_size"), 46, None),  # 30 kept, 16 made before the first step
        (("recipes", "fast", "batch_size"), 47, "recipes.fast.batch_size"),
        (("recipes", "dfnd", "batch_size"), 61, None),
        (("recipes", "dfnd", "batch_size"), 62, "recipes.dfnd.batch_size"),
        (("methods", "dfnd", "num_selected"), 1, "methods.dfnd"),
        (("runtime", "device"), "cuda:99", "runtime.device"),
    ],
)
def test_sizes_at_the_edge(
    tree: dict[str, Any], tmp_path: Path, key: tuple[str, ...], value: Any, subject: str | None
) -> None:
    block = tree
    for part in key[:-1]:
        block = block[part]
    block[key[-1]] = value
    assert list(told(tree, tmp_path)) == ([] if subject is None else [subject])


def test_missing_data_is_told_with_where_it_belongs(tmp_path: Path) -> None:
    tree = read_yaml(FOLDER / "cifar10-cpu.yaml")
    params = Params.model_validate(tree)
    problems = find_problems(params, Layout(tmp_path, params.preset))
    assert [problem.subject for problem in problems] == [
        str(tmp_path / "data"),
        str(tmp_path / "data" / "open-world"),
    ]
    assert "data_batch_1" in problems[0].fix
    assert {problem.exit_code for problem in problems} == {2}


def write_teacher(path: Path, *, dataset: str = "digits", **facts: Any) -> None:
    known = {"num_classes": 10, "channels": 1, **facts}
    card = {"params": {"data": {"name": dataset}}, "facts": known}
    with artifacts.new_artifact(path, kind="teacher", card=card) as draft:
        draft.save_json("weights.json", [1])


def test_a_teacher_in_place_has_to_fit(tree: dict[str, Any], tmp_path: Path) -> None:
    path = Layout(tmp_path, "digits-smoke").teacher("wrn-10-1")
    write_teacher(path)
    assert told(tree, tmp_path) == {}
    write_teacher(path, num_classes=100)
    assert "100 num_classes, digits has 10" in told(tree, tmp_path)[str(path)]
    write_teacher(path, dataset="cifar10", channels=3)  # will be trained anew
    assert told(tree, tmp_path) == {}


def test_a_damaged_teacher_is_an_integrity_problem(tree: dict[str, Any], tmp_path: Path) -> None:
    path = Layout(tmp_path, "digits-smoke").teacher("wrn-10-1")
    write_teacher(path)
    card = path / "card.json"
    card.write_text(card.read_text().replace('"num_classes": 10', '"num_classes": 11'))
    params = Params.model_validate(tree)
    (problem,) = find_problems(params, Layout(tmp_path, params.preset))
    assert (problem.subject, problem.exit_code) == (str(card), 3)


class Plain(nn.Module):
    """A backbone without BatchNorm."""

    def __init__(self, *, num_classes: int, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, num_classes, 3)


def test_methods_that_invert_batch_norm_ask_for_it(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdci.models import BACKBONES

    monkeypatch.setitem(BACKBONES, "wrn-10-1", Plain)
    assert "wrn-10-1" in told(tree, tmp_path)["methods.fast"]
    tree["grid"]["methods"] = ["dfnd"]
    assert told(tree, tmp_path) == {}


def test_an_adopted_dictionary_has_to_be_there_and_to_fit(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["dictionary"]["artifact"] = "other/dictionary"
    assert list(told(tree, tmp_path)) == ["dictionary.artifact"]
    card = {"facts": {"dimension": 64}}
    with artifacts.new_artifact(tmp_path / "other/dictionary", kind="dictionary", card=card):
        pass
    assert list(told(tree, tmp_path)) == ["compensation.fusion"]
    tree["compensation"]["fusion"] = "residual"
    assert told(tree, tmp_path) == {}


def test_shifts_that_a_pool_can_not_hold_are_told(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["grid"].update(shifts=["tail"], shift_arms=["vanilla"])
    tree["shift"] = {"base": "fast", "num_images": 40}
    tree["shifts"] = {"tail": {"imbalance": 1000.0}}
    assert "leave a class without any" in told(tree, tmp_path)["shifts.tail"]
    tree["shift"]["num_images"] = 4
    assert "less than a batch or N" in told(tree, tmp_path)["shift.num_images"]


def test_summary_counts_cells_and_what_is_in_place(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["grid"]["seeds"] = [0, 1, 2]
    params = Params.model_validate(tree)
    layout = Layout(tmp_path, params.preset)
    first, second, third = summary(params, layout)
    assert first == (
        "ok: 12 cells (1 teacher x 1 student x 2 methods x 1 pool seed x 3 seeds x vanilla, kdci)"
    )
    made = "1 teacher, 2 pools, 2 dictionaries, 12 students, 2 evaluations"
    assert made in second
    assert "0 of 19 artifacts are in place" in second
    assert third.endswith("fast 12, dfnd 12")
    graph = graph_of(params, tmp_path)
    (teacher,) = graph.of_stage("teacher")
    values = graph.values(teacher)
    for blocks, count in ((values, 1), ({**values, "runtime": {}}, 0)):
        card = {"params": blocks, "parents": {}}
        with artifacts.new_artifact(teacher.artifact, kind="teacher", card=card):
            pass
        assert re.search(rf"{count} of 19 artifacts", summary(params, layout)[1])


def test_looks_without_changing_how_torch_computes(tree: dict[str, Any], tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    told(tree, tmp_path)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


# -- data -----------------------------------------------------------------------------------


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def mixed(root: Path, *, num_images: int = 0) -> dict[str, Any]:
    """Return an open world of a folder with 7 images and 5 crops of photographs."""
    folder = root / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(7):
        (folder / f"{number}.png").write_bytes(png(number))
    return {
        "source": "mixed",
        "num_images": num_images,
        "sources": [
            {"source": "folder", "path": "pool", "num_images": 0},
            {"source": "photographs", "num_images": 5},
        ],
    }


def test_every_part_of_a_mixed_open_world_is_looked_at(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["methods"]["dfnd"].update(open_world=mixed(tmp_path), num_selected=12)
    tree["recipes"]["dfnd"]["batch_size"] = 8
    assert told(tree, tmp_path) == {}
    tree["methods"]["dfnd"]["open_world"]["sources"] += [
        {"source": "parquet", "path": "none", "num_images": 9},
        {"source": "folder", "path": "empty", "num_images": 9},
    ]
    (tmp_path / "empty").mkdir()
    found = told(tree, tmp_path)
    assert set(found) == {
        "methods.dfnd.open_world.sources.2.path",
        "methods.dfnd.open_world.sources.3.path",
    }
    none, empty = found.values()
    assert none == f"{tmp_path}/none: no such folder"
    assert empty == f"{tmp_path}/empty: no images in it"


def test_an_engine_that_is_not_installed_is_told_before_anything_runs(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["methods"]["dfnd"].update(open_world={**mixed(tmp_path), "engine": "ray"}, num_selected=12)
    tree["recipes"]["dfnd"]["batch_size"] = 8
    assert told(tree, tmp_path) == {}
    monkeypatch.setattr("pipelines.sweeping.scoring.ray_engine.find_spec", lambda name: None)
    assert told(tree, tmp_path) == {"methods.dfnd.open_world.engine": "ray is not installed"}


@pytest.mark.parametrize(("num_images", "available"), [(0, 12), (20, 12), (9, 9)])
def test_no_more_can_be_chosen_than_the_parts_have(
    num_images: int, available: int, tree: dict[str, Any], tmp_path: Path
) -> None:
    open_world = mixed(tmp_path, num_images=num_images)
    tree["methods"]["dfnd"].update(open_world=open_world, num_selected=available + 1)
    tree["recipes"]["dfnd"]["batch_size"] = 8
    what = f"is {available + 1}, but the open world has {available} images"
    assert told(tree, tmp_path) == {"methods.dfnd.num_selected": what}


def custom(root: Path, *splits: str) -> dict[str, Any]:
    for split, name in product(splits, ("ant", "bee")):
        (root / "own" / split / name).mkdir(parents=True)
        (root / "own" / split / name / "a.png").write_bytes(png(9))
    facts = {"num_classes": 2, "image_size": 16, "channels": 1, "mean": [0.5], "std": [0.5]}
    return {"name": "custom", "path": "own", "facts": facts, "test": "test"}


def test_a_custom_dataset_is_looked_at_before_anything_runs(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["data"] = custom(tmp_path, "train", "val")
    assert told(tree, tmp_path) == {}
    tree["data"]["facts"]["num_classes"] = 3
    (what,) = told(tree, tmp_path).values()
    assert what == "2 class folders, custom has 3 classes"


def test_nobody_looks_for_the_data_of_a_teacher_that_is_adopted(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["data"] = custom(tmp_path, "test")
    tree["teacher"]["artifact"] = "teachers/{teacher}"
    own = str(tmp_path / "own")
    assert own not in told(tree, tmp_path)
    tree["teacher"]["artifact"] = None
    assert told(tree, tmp_path)[own] == "no folder train in it"
    tree["teacher"]["artifact"] = "teachers/{teacher}"
    tree["data"].update(path=None, test=None)
    assert "data.path" not in told(tree, tmp_path)
