from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.config.open_world import OpenWorld
from kdci.config.recipes import StudentRecipe
from kdci.data.bank.image_bank import ImageBank
from kdci.errors import UserError
from kdci.methods.dafl import Dafl
from kdci.methods.dfnd import Dfnd, DfndSource
from kdci.methods.fast import Fast, FastSource
from kdci.methods.mosaick import Mosaick
from kdci.models import PixelModel, Prediction
from kdci.substitution import registry
from kdci.substitution.base import SourceContext
from kdci.substitution.block import MethodBlock
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


@pytest.mark.parametrize("method", registry.names())
def test_a_methods_file_says_all_of_it(method: str) -> None:
    """Its block, a description of each value, its title and a line on it."""
    block = registry.block_of(method)
    assert block.__module__ == registry.module_of(method) == f"kdci.methods.{method}"
    assert [name for name, field in block.model_fields.items() if not field.description] == []
    assert registry.title_of(method).lower() == method
    assert registry._found()[method].summary.startswith(registry.title_of(method))
    assert block.is_control == (method in registry.control_names())
    assert (method in registry.method_names()) != block.is_control
    assert set(block.pool_steps) <= set(block.model_fields)


@pytest.mark.parametrize(
    ("block", "refreshes", "added", "steps"),
    [
        (Fast(batch_size=8, warmup_calls=3, num_steps=4), 6, 8, 12),
        (Dafl(num_steps=9), 0, 0, 9),
        (Mosaick(num_selected=5, warmup_steps=7), 12, 0, 7),
        (Dfnd(num_selected=5), 0, 0, 1),
    ],
)
def test_counts_of_a_method(block: MethodBlock, refreshes: int, added: int, steps: int) -> None:
    recipe = StudentRecipe(num_epochs=6, steps_per_epoch=10, batch_size=4)  # a game step each 5
    assert block.num_refreshes(recipe) == refreshes
    assert block.num_refresh_images == block.num_first_images == added
    assert prod(getattr(block, name) for name in block.pool_steps) == steps


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
    source = block.source(make_context(tmp_path))
    assert isinstance(source, FastSource) and source.params is block
    assert source.weights == {"bn": 7.0, "one_hot": 8.0, "adversarial": 9.0}
    assert (source.meta.update, source.meta.reptile_scale) == ("reptile", 11.0)
    assert source.num_preparations == 1  # the warm-up call


def test_dfnd_takes_the_pool_from_the_context(tmp_path: Path) -> None:
    block = Dfnd(num_selected=5, teacher_accuracy=0.75, open_world=OpenWorld(num_images=20))
    source = block.source(make_context(tmp_path))
    assert isinstance(source, DfndSource) and source.teacher_accuracy == 0.75
    list(source.prepare())
    assert len(source.bank) == 5


def test_auto_accuracy_is_the_contexts(tmp_path: Path) -> None:
    source = Dfnd(num_selected=5).source(make_context(tmp_path))
    assert isinstance(source, DfndSource) and source.teacher_accuracy == 0.9


def test_unknown_methods_are_misuse() -> None:
    names = r"unknown method 'magic', one of .*'cmi', 'dafl', .*'noise'"
    with pytest.raises(ValueError, match=names):
        registry.block_of("magic")


def test_a_method_that_does_not_fit_the_teacher_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"methods\.fast") as caught:
        Fast().source(make_context(tmp_path, nn.Identity()))
    assert caught.value.exit_code == 2


# -- methods of others' packages -----------------------------------------------------------------


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return what puts a package with entry points on the path, by name of the package."""
    caches = (registry._found, registry.method_names, registry.control_names, registry.block_of)

    def make(package: str, code: str, *entries: str) -> None:
        place = tmp_path / package
        metadata = place / f"{package}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (place / f"{package}.py").write_text(code, encoding="utf-8")
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        lines = "\n".join(["[kdci.methods]", *entries])
        (metadata / "entry_points.txt").write_text(lines, encoding="utf-8")
        monkeypatch.syspath_prepend(place)
        for each in caches:
            each.cache_clear()

    yield make
    monkeypatch.undo()
    for each in caches:
        each.cache_clear()


GREY = '''"""Grey (Fifty Shades): an example of a test."""
from typing import ClassVar
from kdci.substitution.block import MethodBlock


class Grey(MethodBlock):
    """Grey images."""

    is_control: ClassVar[bool] = True
'''


def test_a_package_brings_a_method(install: Callable[..., None]) -> None:
    install("greyish", GREY, "grey = greyish:Grey")
    assert registry.names()[-1] == "grey" and registry.control_names() == ("noise", "grey")
    assert (registry.title_of("grey"), registry.module_of("grey")) == ("Grey", "greyish")
    assert registry._found()["grey"].summary == "Grey (Fifty Shades): an example of a test."
    assert "greyish" not in sys.modules
    assert registry.block_of("grey").__name__ == "Grey"


def test_a_file_that_says_nothing_has_its_name_for_a_title(install: Callable[..., None]) -> None:
    install("silent", "x = 1\n", "mute = silent:Mute")
    assert (registry.title_of("mute"), registry._found()["mute"].summary) == ("mute", "")


@pytest.mark.parametrize(
    ("code", "entry", "told"),
    [
        (GREY, "fast = pack:Grey", "entry point fast of pack: kdci has a method of this name"),
        (GREY, "Gr-ey = pack:Grey", "entry point Gr-ey of pack: 'Gr-ey' is no name of a method"),
        ("import nowhere_at_all", "grey = pack:Grey", "entry point grey of pack: pack can not be"),
        ("def broken(:", "grey = pack:Grey", "grey of pack: pack can not be loaded: SyntaxError"),
        ("x = 1", "grey = pack:Grey", "grey of pack: pack can not be loaded: AttributeError"),
        ("Grey = 1", "grey = pack:Grey", "can not be loaded: TypeError: Grey is no MethodBlock"),
        ("", "grey = elsewhere:Grey", "grey of pack: elsewhere can not be loaded: ModuleNotFound"),
    ],
)
def test_what_can_not_be_used_is_named(
    install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    entry: str,
    told: str,
) -> None:
    monkeypatch.delitem(sys.modules, "pack", raising=False)
    install("pack", code, entry)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        registry.block_of(entry.split()[0])
    (line,) = caught.value.lines()
    assert "pip uninstall pack" in line or "small letters" in line


def test_two_packages_of_one_method_are_refused(install: Callable[..., None]) -> None:
    install("first", GREY, "grey = first:Grey")
    install("second", GREY, "grey = second:Grey")
    with pytest.raises(UserError, match="entry point grey of .*: .* has a method of this name"):
        registry.names()
