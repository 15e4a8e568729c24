"""Steps of a stage, from the params on its record."""

from __future__ import annotations

import pytest

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.methods.cmi import Cmi
from kdci.methods.deepinv import DeepInv
from kdci.methods.fast import Fast
from pipelines.explaining.tasks import Task, num_steps
from pipelines.params.presets import preset_file


@pytest.mark.parametrize("budget", [1.0, 0.1, 0.01, 3.0])
def test_work_size_is_scaled_as_the_params_are(budget: float) -> None:
    tree = read_yaml(preset_file("table1-cifar10"))
    params = Params.model_validate({**tree, "budget": budget})
    for method in params.grid.methods:
        blocks = params.blocks("budget", f"methods.{method}", f"recipes.{method}")
        scaled = params.method(method)
        steps = num_steps(Task("substitute", {"method": method}), blocks)
        wanted = {
            "dafl": getattr(scaled, "num_steps", None),
            "mosaick": getattr(scaled, "warmup_steps", None),
            "dfnd": None,
        }
        if isinstance(scaled, Fast | Cmi | DeepInv):
            wanted[method] = scaled.warmup_calls * scaled.num_steps
        assert steps == wanted[method]
        assert (
            num_steps(Task("distill", {"method": method}), blocks)
            == params.recipe(method).num_steps
        )


def test_work_size_of_a_pool_that_depends_on_the_teacher_is_not_known() -> None:
    task = Task("substitute", {"method": "fast"})
    block = {"warmup_calls": 2, "num_steps": 3, "by_teacher": {"vgg-11": {"num_steps": 4}}}
    assert num_steps(task, {"methods.fast": block}) is None
    block["by_teacher"] = {"vgg-11": {"one_hot_weight": 0.5}}
    assert num_steps(task, {"methods.fast": block}) == 6
