"""The params tree: what is refused, what is filled in, and what a stage sees of it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import ValidationError

from kdci.config.catalog import BACKBONE_NAMES, DATASETS
from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.store.hashing import hash_json
from tests.project_code import ROOT

PRESET = ROOT / "pipelines" / "presets" / "digits-smoke.yaml"


@pytest.fixture
def tree() -> dict[str, Any]:
    return copy.deepcopy(read_yaml(PRESET))


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    *blocks, last = key.split(".")
    for block in blocks:
        tree = tree[block]
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preset", ".hidden"),
        ("preset", "a/b"),
        ("preset", "x" * 65),
        ("preset", "trailing\n"),
        ("preset", 3),
        ("grid.seeds", [2**31]),
        ("grid.seeds", [True]),
        ("grid.seeds", 3),
        ("grid.students", ["wrn-10-1", "wrn-10-1"]),
        ("grid.pool_seeds", None),
        ("runtime.threads", 1025),
        ("runtime.threads", "many"),
        ("runtime.device", "cuda:x"),
        ("runtime.device", "cpu "),
        ("data.test", "train"),
        ("teacher.batch_size", 0),
        ("teacher.momentum", 1.0),
        ("teacher.learning_rate", 0),
        ("teacher.weight_decay", -1e-9),
        ("pool.holdout", 0),
        ("pool.holdout", 0.51),
        ("methods.fast.batch_size", 1),
        ("methods.fast.bn_momentum", 1),
        ("methods.fast.meta_update", "adam"),
        ("grid.methods", ["noise"]),  # a control is no method
        ("grid.controls", ["fast"]),
        ("grid.controls", ["noise", "noise"]),
        ("methods.dafl.generator", "large"),
        ("methods.deepinv.js_floor", 0.5),
        ("methods.mosaick.num_selected", 0),
        ("methods.dfnd.teacher_accuracy", 1.0),
        ("methods.dfnd.open_world.num_images", -1),
        ("recipes.dfnd.batch_size", 1),
        ("recipes.dfnd.schedule", "step"),
        ("dictionary.num_prototypes", 0),
        ("compensation.scale", 0),
        ("compensation.scale", "n"),
        ("compensation.learning_rate", float("nan")),
        ("distill.num_snapshots", 101),
        ("evaluate.deploy", "both"),
    ],
)
def test_refuses(tree: dict[str, Any], key: str, value: Any) -> None:
    put(tree, key, value)
    with pytest.raises(ValidationError) as caught:
        Params.model_validate(tree)
    places = [".".join(str(part) for part in error["loc"]) for error in caught.value.errors()]
    assert all(place.startswith(key) for place in places)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grid.seeds", [2**31 - 1]),
        ("runtime.threads", "auto"),
        ("runtime.device", "cuda:3"),
        ("data.test", None),
        ("teacher.learning_rate", 1),
        ("pool.holdout", 0.5),
        ("methods.fast.reset_after_calls", None),
        ("methods.dfnd.teacher_accuracy", 0.93),
        ("compensation.scale", "N"),
        ("compensation.learning_rate", 0.01),
        ("dictionary.artifact", "artifacts/other/dictionaries/x"),
    ],
)
def test_accepts(tree: dict[str, Any], key: str, value: Any) -> None:
    put(tree, key, value)
    block, _, rest = key.partition(".")
    seen = Params.model_validate(tree).blocks(f"{block}.{rest}")
    assert seen == {key: value}


def test_a_method_outside_the_grid_may_be_left_out(tree: dict[str, Any]) -> None:
    del tree["methods"]["dfnd"], tree["recipes"]["dfnd"]
    with pytest.raises(ValidationError, match="its block is missing"):
        Params.model_validate(tree)
    tree["grid"]["methods"] = ["fast"]
    assert "dfnd" not in Params.model_validate(tree).methods


def test_catalogued_names_are_all_taken(tree: dict[str, Any]) -> None:
    tree["grid"]["teachers"] = list(BACKBONE_NAMES)
    for name in DATASETS:
        tree["data"] = {"name": name, "path": None if DATASETS[name].bundled else "data"}
        params = Params.model_validate(tree)
        assert params.data.spec is DATASETS[name]
        assert params.grid.teachers == BACKBONE_NAMES


SHIFT = {"base": "fast", "num_images": 40}


@pytest.mark.parametrize(
    ("edits", "key"),
    [
        ({"grid.arms": ["kdci"]}, "grid.arms.0"),
        ({"grid.arms": ["kdci_other"]}, "grid.arms.0"),
        ({"grid.arms": ["stratified", "stratified"]}, "grid.arms"),
        ({"grid.shifts": ["Tail"]}, "grid.shifts.0"),
        ({"grid.others": ["wrn-10-1", "wrn-10-1"]}, "grid.others"),
        ({"grid.others": ["wrn-10-1", "vgg-11"]}, "grid"),
        ({"grid.shifts": ["tail"], "shifts": {"tail": {}}, "grid.shift_arms": ["vanilla"]}, ""),
        ({"grid.shifts": ["tail"], "shift": SHIFT, "grid.shift_arms": ["vanilla"]}, ""),
        ({"grid.shifts": ["tail"], "shift": SHIFT, "shifts": {"tail": {}}}, ""),
        ({"shifts": {"tail": {"imbalance": 0.5}}}, "shifts.tail.imbalance"),
        ({"shifts": {"tail": {"contrast": 0}}}, "shifts.tail.contrast"),
        ({"shift": {**SHIFT, "num_images": 1}}, "shift.num_images"),
        ({"grid.others": ["wrn-10-1"]}, ""),
        ({"grid.others": ["wrn-10-1"], "other": {"data": {"name": "digits5"}}}, ""),
        ({"intervention.max_repeats": 0.5}, "intervention.max_repeats"),
        ({"compensation.scale": "M"}, "compensation.scale.literal['N','shift']"),
        ({"compensation.rebuild": 0}, "compensation.rebuild"),
    ],
)
def test_arms_shifts_and_others_are_checked(
    tree: dict[str, Any], edits: dict[str, Any], key: str
) -> None:
    for name, value in edits.items():
        put(tree, name, value)
    with pytest.raises(ValidationError) as raised:
        Params.model_validate(tree)
    keys = [".".join(map(str, error["loc"])) for error in raised.value.errors()]
    assert key in keys, keys


def test_a_known_shift_has_the_block_and_recipe_of_its_base(tree: dict[str, Any]) -> None:
    put(tree, "grid.shifts", ["tail"])
    put(tree, "grid.shift_arms", ["vanilla", "class_balanced"])
    tree["shift"], tree["shifts"] = SHIFT, {"tail": {"imbalance": 10.0}}
    params = Params.model_validate(tree)
    assert params.base_of("tail") == "fast" and params.base_of("dfnd") == "dfnd"
    assert params.recipe("tail") is params.recipe("fast")
    assert params.method("tail") is params.method("fast")
    assert params.blocks("shifts.tail")["shifts.tail"]["imbalance"] == 10.0


def test_the_other_models_params_differ_in_backbone_and_data(tree: dict[str, Any]) -> None:
    put(tree, "grid.others", ["wrn-16-1"])
    put(tree, "compensation.fusion", "residual")
    tree["other"] = {"data": {"name": "digits5", "path": None}}
    params = Params.model_validate(tree)
    other = params.of_other()
    assert other.grid.teachers == ("wrn-16-1",) and other.data.spec.num_classes == 5
    changed = {"grid", "data"}
    for name in type(params).model_fields:
        assert (getattr(other, name) == getattr(params, name)) is (name not in changed)
    with pytest.raises(ValueError, match="no other model"):
        Params.model_validate({**tree, "grid": {**tree["grid"], "others": []}}).of_other()


def test_is_frozen(tree: dict[str, Any]) -> None:
    params = Params.model_validate(tree)
    with pytest.raises(ValidationError):
        params.grid.seeds = (1,)  # type: ignore[misc]


def test_blocks_use_the_keys_and_types_of_the_file(tree: dict[str, Any]) -> None:
    blocks = Params.model_validate(tree).blocks("compensation", "grid.seeds", "methods.dfnd")
    assert json.loads(json.dumps(blocks)) == blocks
    assert blocks["compensation"] == tree["compensation"]
    assert blocks["grid.seeds"] == [0]
    of_dfnd, written = blocks["methods.dfnd"], tree["methods"]["dfnd"]
    assert written.pop("open_world").items() <= of_dfnd["open_world"].items()
    assert written.items() <= of_dfnd.items()


@pytest.mark.parametrize("key", ["nothing", "grid.nothing", "methods.nothing"])
def test_blocks_refuse_a_key_that_is_not_there(tree: dict[str, Any], key: str) -> None:
    with pytest.raises(KeyError):
        Params.model_validate(tree).blocks(key)


def test_a_recipe_counts_its_steps(tree: dict[str, Any]) -> None:
    tree["recipes"]["fast"].update(num_epochs=7, steps_per_epoch=11)
    assert Params.model_validate(tree).recipe("fast").num_steps == 77


def test_hash_sees_values_and_not_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})
    # sha256 of the two bytes {}: known from elsewhere
    assert hash_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
