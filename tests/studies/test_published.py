"""The published hyper-parameters: complete, as the fact sheet has them, and as documented."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from kdci.config.catalog import BACKBONE_NAMES, DATASETS
from kdci.config.params import Params
from kdci.substitution.registry import method_names
from studies.published import BLOCKS, Setting, published_setting, published_settings
from studies.published_rows import PAIRS
from tests.project_code import ROOT

SETTINGS = list(published_settings())


def block_of(method: str, dataset: str, teacher: str, student: str) -> Any:
    return published_setting(method, dataset, teacher, student).block


def of_cifar(method: str) -> list[Setting]:
    return [s for s in SETTINGS if s.method == method and s.dataset.startswith("cifar")]


def test_every_method_has_a_setting_for_every_pair_of_the_papers_tables() -> None:
    assert set(BLOCKS) == set(method_names())
    assert [len(pairs) for pairs in PAIRS.values()] == [5, 5, 1, 2]
    keys = [(s.method, s.dataset, s.teacher, s.student) for s in SETTINGS]
    assert len(set(keys)) == len(keys) == len(method_names()) * 13
    for setting in SETTINGS:
        assert isinstance(setting.block, BLOCKS[setting.method])
        assert setting.provenance


def test_cifar_10_and_cifar_100_have_the_same_values() -> None:
    for method in method_names():
        settings = of_cifar(method)
        for ten, hundred in zip(settings[:5], settings[5:], strict=True):
            assert (ten.block, ten.recipe) == (hundred.block, hundred.recipe)


@pytest.mark.parametrize(
    ("teacher", "student", "adversarial", "one_hot"),
    [
        ("resnet-34", "resnet-18", 1.33, 0.5),
        ("vgg-11", "resnet-18", 1.0, 0.5),
        ("wrn-40-2", "wrn-16-1", 1.1, 0.4),
        ("wrn-40-2", "wrn-40-1", 1.1, 0.4),
        ("wrn-40-2", "wrn-16-2", 1.1, 0.4),
    ],
)
def test_fast_has_its_authors_weights_for_each_pair(
    teacher: str, student: str, adversarial: float, one_hot: float
) -> None:
    block = block_of("fast", "cifar10", teacher, student)
    weights = (block.adversarial_weight, block.bn_weight, block.one_hot_weight)
    assert weights == (adversarial, 10.0, one_hot)
    assert (block.num_steps, block.generator_learning_rate) == (10, 2e-3)
    assert block.latent_learning_rate == 0.01


def test_fast_on_imagenet_fights_the_two_students_unequally() -> None:
    blocks = [block_of("fast", "imagenet", *pair) for pair in PAIRS["imagenet"]]
    assert [block.adversarial_weight for block in blocks] == [1.0, 0.1]
    assert {(b.num_steps, b.bn_weight, b.meta_update) for b in blocks} == {(50, 0.1, "reptile")}


def test_fast_on_tiny_imagenet_is_the_port_that_exists() -> None:
    setting = published_setting("fast", "tiny-imagenet", "resnet-34", "resnet-18")
    block: Any = setting.block
    assert (block.adversarial_weight, block.one_hot_weight, block.batch_size) == (1.33, 0.5, 200)
    assert (setting.recipe.num_epochs, setting.recipe.steps_per_epoch) == (100, 1000)


def test_students_on_cifar_take_the_published_numbers_of_steps() -> None:
    steps = {method: {s.recipe.num_steps for s in of_cifar(method)} for method in method_names()}
    assert steps == {
        "dafl": {80_000},
        "fast": {80_000},
        "cmi": {80_000},
        "deepinv": {80_000},
        "mosaick": {196_000},
        "dfnd": {77_352},
    }


def test_pools_on_cifar_have_the_published_numbers_of_images() -> None:
    images = {method: {s.block.num_pool_images for s in of_cifar(method)} for method in BLOCKS}
    assert images == {
        "dafl": {51_200},
        "fast": {5_120},
        "cmi": {51_200},
        "deepinv": {51_200},
        "mosaick": {75_000},
        "dfnd": {600_000},
    }


def test_students_on_cifar_have_the_published_rates_and_temperatures() -> None:
    def values(setting: Setting) -> tuple[float, float]:
        block: Any = setting.block
        return setting.recipe.learning_rate, block.temperature

    found = {method: {values(setting) for setting in of_cifar(method)} for method in BLOCKS}
    assert found == {
        "dafl": {(0.1, 1.0)},
        "fast": {(0.2, 20.0)},
        "cmi": {(0.1, 20.0)},
        "deepinv": {(0.1, 20.0)},
        "mosaick": {(0.1, 1.0)},
        "dfnd": {(0.1, 4.0)},
    }


def test_temperatures_on_imagenet_are_the_published_ones() -> None:
    pair = PAIRS["imagenet"][0]
    assert block_of("fast", "imagenet", *pair).temperature == 5.0
    assert block_of("deepinv", "imagenet", *pair).temperature == 3.0


def test_mosaicks_cosine_covers_the_whole_game() -> None:
    for setting in of_cifar("mosaick"):
        block: Any = setting.block
        game_steps = setting.recipe.num_steps // block.distillation_steps_per_game_step
        assert block.cosine_steps == game_steps == 39_200
        assert setting.recipe.batch_size == 2 * block.batch_size == 512


def test_dfnd_falls_at_milestones_and_decays_more() -> None:
    recipe = of_cifar("dfnd")[0].recipe
    assert (recipe.schedule, recipe.weight_decay) == ("milestones", 5e-4)


def test_the_jitter_on_imagenet_is_thirty_pixels() -> None:
    block = block_of("deepinv", "imagenet", *PAIRS["imagenet"][0])
    assert int(block.jitter_fraction * 224) == 30
    assert int(block.jitter_fraction * 112) == 15


def test_what_nobody_published_says_so() -> None:
    texts = {(s.method, s.dataset, s.teacher, s.student): s.provenance for s in SETTINGS}
    assert texts["cmi", "cifar10", "wrn-40-2", "wrn-16-1"].startswith("CMI's script")
    assert "unpublished for this pair: same as" in texts["cmi", "cifar100", "vgg-11", "resnet-18"]
    assert texts["mosaick", "cifar100", *PAIRS["cifar100"][0]].startswith("MosaicKD's README")
    assert texts["mosaick", "cifar10", *PAIRS["cifar10"][0]] == "unpublished: same as cifar100"
    for method in ("dafl", "cmi", "mosaick"):
        assert texts[method, "imagenet", "resnet-50", "resnet-18"].startswith("unpublished")


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        (("adi", "cifar10", "vgg-11", "resnet-18"), "dafl, fast, cmi, deepinv, mosaick, dfnd"),
        (("fast", "svhn", "vgg-11", "resnet-18"), "cifar10, cifar100, tiny-imagenet, imagenet"),
        (
            ("fast", "imagenet", "vgg-11", "resnet-18"),
            "resnet-50 -> resnet-18, resnet-50 -> mobilenetv2",
        ),
    ],
)
def test_unknown_names_are_refused_with_the_choices(
    key: tuple[str, str, str, str], choices: str
) -> None:
    with pytest.raises(ValueError, match=f"one of {choices}"):
        published_setting(*key)


@pytest.mark.parametrize(
    ("dataset", "pair"),
    [
        (dataset, pair)
        for dataset, pairs in PAIRS.items()
        for pair in pairs
        if dataset in DATASETS and set(pair) <= set(BACKBONE_NAMES)
    ],
)
def test_settings_survive_the_params_file(dataset: str, pair: tuple[str, str]) -> None:
    settings = [published_setting(method, dataset, *pair) for method in method_names()]
    params = Params.model_validate(
        {
            "preset": "paper",
            "grid": {
                "teachers": [pair[0]],
                "students": [pair[1]],
                "methods": list(method_names()),
                "seeds": [0],
            },
            "data": {"name": dataset, "path": "data/original"},
            "teacher": {"num_epochs": 200, "batch_size": 128},
            "methods": {s.method: s.block.model_dump(mode="json") for s in settings},
            "recipes": {s.method: s.recipe.model_dump(mode="json") for s in settings},
        }
    )
    for setting in settings:
        assert params.method(setting.method) == setting.block
        assert params.recipe(setting.method) == setting.recipe


def test_the_documented_tables_show_these_values_and_the_presets() -> None:
    check = subprocess.run(
        [sys.executable, "-m", "studies.methods_table"], cwd=ROOT, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


def test_the_page_has_a_table_for_every_method() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    places = [page.find(f"<!-- table: {method} -->") for method in BLOCKS]
    assert -1 not in places
    assert places == sorted(places)
