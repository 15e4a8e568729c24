from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.config.methods import OVERRIDES, Dfnd, Fast, OpenWorld
from kdci.config.params import CONTROL_NAMES, METHOD_NAMES, Methods, Recipes
from kdci.data.bank.image_bank import ImageBank
from kdci.errors import UserError
from kdci.methods.base import SourceContext
from kdci.methods.dfnd import DfndSource
from kdci.methods.fast import FastSource
from kdci.methods.registry import CONTROLS, METHODS, build_source
from kdci.models import PixelModel, Prediction
from tests.kdci._tensor_pool import TensorPool

SPEC = DatasetSpec("tiny", 3, 8, 1, (0.5,), (0.5,), 0, False, ("a", "b", "c"))


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Prediction:
        features = self.norm(images).flatten(1)
        return Prediction(self.head(features), features)


def make_context(folder: Path, norm: nn.Module | None = None) -> SourceContext:
    teacher = PixelModel(Net(norm or nn.BatchNorm2d(1)), mean=SPEC.mean, std=SPEC.std).eval()
    bank = ImageBank(folder / "bank.bin", shape=(1, 8, 8))
    pool = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    return SourceContext(teacher, SPEC, bank, 0, 0.9, lambda: TensorPool(pool))


BUILDERS = METHODS | CONTROLS


def test_the_registry_has_the_names_that_params_may_use() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    assert tuple(CONTROLS) == CONTROL_NAMES
    assert set(Methods.model_fields) == set(Recipes.model_fields) == set(BUILDERS)


@pytest.mark.parametrize("method", BUILDERS)
def test_a_block_holds_what_its_source_takes(method: str) -> None:
    """All of it, and no more, with the same defaults; what the context loads is no argument."""
    block = Methods.model_fields[method].annotation
    (kind,) = [k for k in block.__args__ if k is not type(None)]  # type: ignore[union-attr]
    taken = {
        name: parameter.default
        for name, parameter in inspect.signature(BUILDERS[method]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    fields = {
        name: field
        for name, field in kind.model_fields.items()
        if name not in ("open_world", *OVERRIDES)
    }
    assert set(fields) == set(taken)
    for name, field in fields.items():
        # A required field may have no default on either side.
        assert field.is_required() == (taken[name] is inspect.Parameter.empty), name
        assert field.is_required() or field.default == taken[name], name


def test_every_value_reaches_the_source(tmp_path: Path) -> None:
    block = Fast(
        latent_dim=3,
        generator_width=2,
        batch_size=4,
        num_steps=2,
        generator_learning_rate=0.5,
        latent_learning_rate=0.25,
        bn_weight=7.0,
        one_hot_weight=8.0,
        adversarial_weight=9.0,
        bn_momentum=0.125,
        warmup_calls=1,
        meta_update="reptile",
        reptile_scale=11.0,
        reset_after_calls=None,
        temperature=13.0,
    )
    source = build_source("fast", block, make_context(tmp_path))
    assert isinstance(source, FastSource)
    for name in (
        "latent_dim",
        "batch_size",
        "num_steps",
        "generator_learning_rate",
        "latent_learning_rate",
        "bn_momentum",
        "warmup_calls",
        "temperature",
    ):
        assert getattr(source, name) == getattr(block, name)
    assert source.weights == {"bn": 7.0, "one_hot": 8.0, "adversarial": 9.0}
    assert (source.meta.update, source.meta.reptile_scale) == ("reptile", 11.0)
    assert source.num_preparations == 1  # the warm-up call


def test_dfnd_takes_the_pool_from_the_context(tmp_path: Path) -> None:
    block = Dfnd(num_selected=5, teacher_accuracy=0.75, open_world=OpenWorld(num_images=20))
    source = build_source("dfnd", block, make_context(tmp_path))
    assert isinstance(source, DfndSource) and source.teacher_accuracy == 0.75
    list(source.prepare())
    assert len(source.bank) == 5


def test_auto_accuracy_is_the_contexts(tmp_path: Path) -> None:
    source = build_source("dfnd", Dfnd(num_selected=5), make_context(tmp_path))
    assert isinstance(source, DfndSource) and source.teacher_accuracy == 0.9


def test_unknown_methods_are_misuse(tmp_path: Path) -> None:
    names = r"unknown method 'magic', one of .*'cmi', 'dafl', .*'noise'"
    with pytest.raises(ValueError, match=names):
        build_source("magic", Fast(), make_context(tmp_path))


def test_a_method_that_does_not_fit_the_teacher_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"methods\.fast") as caught:
        build_source("fast", Fast(), make_context(tmp_path, nn.Identity()))
    assert caught.value.exit_code == 2
