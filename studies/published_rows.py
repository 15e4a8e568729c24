"""The rows of the methods' tables of hyper-parameters, which ``studies.published`` puts together.

A method's table is read from the top: its first row says everything, a later one what is
different for some datasets or pairs. Values fit our split in two stages: what needs no student
(``substitute``), then distillation with one refresh of the pool an epoch (``distill``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdci.reporting.published.tables import (
    CIFAR_PAIRS,
    R34_R18,
    R50_MOBILE,
    R50_R18,
    VGG11_R18,
    W402_W161,
    Pair,
)

Values = Mapping[str, Any]

PAIRS: dict[str, tuple[Pair, ...]] = {
    "cifar10": CIFAR_PAIRS,
    "cifar100": CIFAR_PAIRS,
    "tiny-imagenet": (R34_R18,),
    "imagenet": (R50_R18, R50_MOBILE),
}
"""The pairs (teacher, student) of each dataset, in the order of the tables' columns."""
CIFAR, TINY, IMAGENET = ("cifar10", "cifar100"), ("tiny-imagenet",), ("imagenet",)

OPEN_WORLD = {"source": "folder", "path": "data/open-world", "num_images": 0}
"""A placeholder: where the unlabelled images lie is not known here."""


@dataclass(frozen=True)
class Row:
    """What a line of a method's table says, of some datasets and pairs; empty: of all."""

    provenance: str
    block: Values = field(default_factory=dict)
    recipe: Values = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()

    def applies(self, dataset: str, pair: Pair) -> bool:
        """Tell whether this row is about a pair of a dataset."""
        return dataset in (self.datasets or PAIRS) and pair in (self.pairs or (pair,))


def _recipe(num_epochs: int, steps: int, batch_size: int, rate: float, **other: Any) -> Values:
    return {
        "num_epochs": num_epochs,
        "steps_per_epoch": steps,
        "batch_size": batch_size,
        "learning_rate": rate,
        **other,
    }


_TINY_RECIPE = _recipe(100, 1000, 256, 0.1, final_learning_rate=2e-4)
"""The student of NAYER's port of Fast to Tiny-ImageNet."""
_IMAGENET_RECIPE = _recipe(400, 1000, 100, 0.1)
"""The student of Fast on ImageNet, in epochs as there; with one call an epoch instead of ten."""

DAFL = (
    Row(
        "unpublished for this pair: same as cifar10 wrn-40-2 -> wrn-16-1",
        {
            "generator": "small",
            "latent_dim": 512,
            "generator_width": 64,
            "batch_size": 256,
            "num_steps": 16_000,
            "sample_every": 80,
            "learning_rate": 1e-3,
            "one_hot_weight": 1.0,
            "activation_weight": 1e-3,
            "entropy_weight": 20.0,
            "augment_pool": False,
            "temperature": 1.0,
        },
        _recipe(200, 400, 256, 0.1, final_learning_rate=2e-4),
    ),
    Row(
        "unpublished for this pair: same as cifar10 wrn-40-2 -> wrn-16-1; the published row quotes "
        "DAFL's own code: 240,000 joint steps of generator and student at batch 1024",
        pairs=(R34_R18,),
        datasets=CIFAR,
    ),
    Row("Fast-Datafree's script", datasets=("cifar10",), pairs=(W402_W161,)),
    Row(
        "unpublished: same as cifar100 (G-small at 64 px), student as in NAYER's port of Fast",
        recipe=_TINY_RECIPE,
        datasets=TINY,
    ),
    Row(
        "unpublished: same as cifar100 at Fast's ImageNet batch and student; G-small has no "
        "variant for 224 px, its first layer alone has 206 million weights",
        {"batch_size": 100},
        _IMAGENET_RECIPE,
        datasets=IMAGENET,
    ),
)

_FAST_IMAGENET = (
    "Fast-Datafree's ImageNet logs, as near as our options come: there 14 x 14 latents that "
    "are learned across calls, a deeper generator, a meta rate of 1e-4 (ours is K times the "
    "inner one), resized crops, the last step kept, and 140,000 images inverted beforehand, "
    "for which 1400 calls of warm-up stand in; an epoch of ours is one call, a tenth of "
    "theirs"
)

FAST = (
    Row(
        "Fast-Datafree's scripts (Fast-10)",
        {
            "latent_dim": 256,
            "generator_width": 64,
            "batch_size": 256,
            "num_steps": 10,
            "generator_learning_rate": 2e-3,
            "latent_learning_rate": 0.01,
            "bn_weight": 10.0,
            "one_hot_weight": 0.4,
            "adversarial_weight": 1.1,
            "bn_momentum": 0.9,
            "warmup_calls": 20,
            "meta_update": "fomaml",
            "reset_after_calls": 120,
            "temperature": 20.0,
        },
        _recipe(200, 400, 256, 0.2, final_learning_rate=2e-4),
    ),
    Row(
        "Fast-Datafree's scripts (Fast-10)",
        {"one_hot_weight": 0.5, "adversarial_weight": 1.33},
        pairs=(R34_R18,),
    ),
    Row(
        "Fast-Datafree's scripts (Fast-10)",
        {"one_hot_weight": 0.5, "adversarial_weight": 1.0},
        pairs=(VGG11_R18,),
    ),
    Row(
        "unpublished by the authors: NAYER's port, with Fast-10's steps and rates",
        {"batch_size": 200},
        _TINY_RECIPE,
        datasets=TINY,
    ),
    Row(
        _FAST_IMAGENET,
        {
            "batch_size": 100,
            "num_steps": 50,
            "generator_learning_rate": 2e-4,
            "bn_weight": 0.1,
            "one_hot_weight": 0.1,
            "adversarial_weight": 1.0,
            "warmup_calls": 1400,
            "meta_update": "reptile",
            "reptile_scale": 1.0,
            "reset_after_calls": None,
            "temperature": 5.0,
        },
        _recipe(4000, 100, 100, 0.1, final_learning_rate=0.0),
        datasets=IMAGENET,
    ),
    Row(_FAST_IMAGENET, {"adversarial_weight": 0.1}, pairs=(R50_MOBILE,)),
)

CMI = (
    Row(
        "CMI's script, one pair; unpublished for this pair: same as cifar10 wrn-40-2 -> wrn-16-1",
        {
            "latent_dim": 256,
            "generator_width": 64,
            "batch_size": 256,
            "num_steps": 200,
            "learning_rate": 1e-3,
            "bn_weight": 1.0,
            "one_hot_weight": 0.5,
            "adversarial_weight": 0.5,
            "contrastive_weight": 0.8,
            "contrastive_temperature": 0.1,
            "projection_dim": 256,
            "memory_size": 40_960,
            "num_negatives": 4096,
            "warmup_calls": 200,
            "temperature": 20.0,
        },
        _recipe(40, 2000, 128, 0.1),
    ),
    Row(
        "CMI's script of the adversarial stage on images inverted beforehand; how those were "
        "made is unpublished: same values, without a student",
        datasets=("cifar10",),
        pairs=(W402_W161,),
    ),
    Row(
        "unpublished: same as cifar100 at 64 px, student as in NAYER's port of Fast",
        recipe=_TINY_RECIPE,
        datasets=TINY,
    ),
    Row(
        "unpublished: same as cifar100 at Fast's ImageNet batch, number of first images, "
        "temperature and student; G-small has no variant for 224 px",
        {"batch_size": 100, "warmup_calls": 1400, "temperature": 5.0},
        _IMAGENET_RECIPE,
        datasets=IMAGENET,
    ),
)

DEEPINV = (
    Row(
        "Fast-Datafree's recipe of its CIFAR rows, with the 2000 steps these are named after (the "
        "script says 1000); first without, then with a student: ours",
        {
            "batch_size": 256,
            "num_steps": 2000,
            "learning_rate": 0.1,
            "beta1": 0.5,
            "beta2": 0.99,
            "bn_weight": 10.0,
            "one_hot_weight": 1.0,
            "adversarial_weight": 1.0,
            "js_temperature": 3.0,
            "js_floor": 0.0,
            "jitter_fraction": 0.125,
            "warmup_calls": 200,
            "temperature": 20.0,
        },
        _recipe(40, 2000, 256, 0.1, final_learning_rate=2e-4),
    ),
    Row(
        "unpublished: same as cifar100, student as in NAYER's port of Fast",
        recipe=_TINY_RECIPE,
        datasets=TINY,
    ),
    Row(
        "NVIDIA's ImageNet code (its setting 0) and the authors' answers on distillation (90 "
        "epochs on 140,000 images, T 3); the student's rate and batch are unpublished, and this "
        "student is the authors' for resnet-50 only; a call an epoch more than there",
        {
            "batch_size": 84,
            "num_steps": 1000,
            "low_resolution_steps": 2000,
            "learning_rate": 0.25,
            "beta2": 0.9,
            "learning_rate_schedule": "cosine",
            "lr_warmup_steps": 100,
            "bn_weight": 0.01,
            "first_bn_factor": 10.0,
            "adversarial_weight": 0.0,
            "tv_l2_weight": 1e-4,
            "l2_weight": 1e-5,
            "jitter_fraction": 0.134,
            "warmup_calls": 1667,
            "temperature": 3.0,
        },
        _recipe(90, 547, 256, 0.1, final_learning_rate=0.0),
        datasets=IMAGENET,
    ),
)

MOSAICK = (
    Row(
        "MosaicKD's README; the stage without a student (2000 steps, 25,000 images) is ours",
        {
            "num_selected": 50_000,
            "latent_dim": 100,
            "generator_width": 64,
            "discriminator_width": 128,
            "batch_size": 256,
            "learning_rate": 1e-3,
            "adversarial_weight": 1.0,
            "align_weight": 1.0,
            "local_weight": 1.0,
            "balance_weight": 10.0,
            "warmup_steps": 2000,
            "num_samples": 25_000,
            "distillation_steps_per_game_step": 5,
            "cosine_steps": 39_200,
            "temperature": 1.0,
            "open_world": OPEN_WORLD,
        },
        _recipe(200, 980, 512, 0.1),
    ),
    Row("unpublished: same as cifar100", datasets=("cifar10",)),
    Row("unpublished: same as cifar100 at 64 px", datasets=TINY),
    Row(
        "unpublished: same as cifar100 at Fast's ImageNet batch and temperature; G-large has no "
        "variant for 224 px",
        {"batch_size": 100, "temperature": 5.0},
        {"batch_size": 200},
        datasets=IMAGENET,
    ),
)

DFND = (
    Row(
        "DFND's code, one recipe for every pair; the teacher's accuracy is its own",
        {
            "num_selected": 600_000,
            "teacher_accuracy": "auto",
            "temperature": 4.0,
            "noise_learning_rate": 1e-3,
            "score_batch_size": 256,
            "open_world": OPEN_WORLD,
        },
        _recipe(33, 2344, 256, 0.1, weight_decay=5e-4, schedule="milestones"),
    ),
    Row("unpublished: same as cifar100 at 64 px", datasets=TINY),
    Row(
        "unpublished: same as cifar100 with another open world (600,000 images of 224 px are "
        "90 GB)",
        datasets=IMAGENET,
    ),
)

TABLES: dict[str, tuple[Row, ...]] = {
    "dafl": DAFL,
    "fast": FAST,
    "cmi": CMI,
    "deepinv": DEEPINV,
    "mosaick": MOSAICK,
    "dfnd": DFND,
}
