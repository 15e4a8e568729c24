"""What each method computes, in steps of its networks: read off the method's own code.

A test counts the calls of the networks in real stages and asks for exactly these numbers. Sums
hold as many entries as there are kinds of steps, whatever the number of steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kdci.config.catalog import DatasetSpec
from kdci.config.recipes import StudentRecipe
from kdci.methods.cmi import Cmi
from kdci.methods.dafl import Dafl
from kdci.methods.deepinv import DeepInv
from kdci.methods.dfnd import Dfnd
from kdci.methods.fast import Fast
from kdci.methods.mosaick import Mosaick
from kdci.methods.noise import Noise
from kdci.probing.subjects import Kind, Subject, Work
from kdci.substitution.block import MethodBlock

Tally = Counter[Work]
"""How often each step is taken."""

STRATUM_BATCH = 512
"""As ``kdci.substitution.bank_source`` labels rows."""
MOSAICK_PARTS = 20
"""As ``kdci.methods.mosaick`` cuts its warm-up."""


@dataclass(frozen=True)
class Nets:
    """The networks of an experiment, as they are probed.

    Attributes:
        spec: The images.
        stem: First layers of the backbones.
    """

    spec: DatasetSpec
    stem: str

    def backbone(self, name: str) -> Subject:
        """Return a teacher or a student."""
        return Subject("backbone", name, self.spec, self.stem)

    def generator(self, name: str, latent_dim: int, width: int) -> Subject:
        """Return a generator, `small`, `large` or `original`."""
        return Subject("generator", name, self.spec, sizes=(latent_dim, width))


def times(tally: Tally, number: int) -> Tally:
    """Return everything ``number`` times."""
    return Counter({work: count * number for work, count in tally.items()})


def passes(kind: Kind, subject: Subject, num_images: int, batch: int) -> Tally:
    """Return a pass over images in batches, the last of which may be smaller."""
    whole, rest = divmod(num_images, batch)
    tally: Tally = Counter()
    if whole:
        tally[Work(kind, subject, batch)] = whole
    if rest:
        tally[Work(kind, subject, rest)] += 1
    return tally


def pool_steps(block: MethodBlock, nets: Nets, teacher: str, num_open_world: int) -> Tally:
    """Return what making or choosing a pool takes.

    Args:
        block: The method's block, of the teacher, at the budget.
        nets: The networks.
        teacher: Backbone.
        num_open_world: Unlabelled images to choose from; methods without an open world: 0.
    """
    return _POOLS[type(block)](block, nets, nets.backbone(teacher), num_open_world)


def refresh_steps(
    block: MethodBlock, nets: Nets, teacher: str, student: str, recipe: StudentRecipe
) -> Tally:
    """Return what synthesis beside the distillation takes: all refreshes of a student."""
    refresh = _REFRESHES.get(type(block))
    if refresh is None:
        return Counter()
    return refresh(block, nets, nets.backbone(teacher), nets.backbone(student), recipe)


def is_refreshed(block: MethodBlock) -> bool:
    """Tell whether a method synthesises beside the distillation."""
    return type(block) in _REFRESHES


def step_steps(
    block: MethodBlock, nets: Nets, teacher: str, student: str, batch: int, *, strata: bool = False
) -> Tally:
    """Return one distillation step: kdci/training/distillation.py, ``_train_step``.

    Args:
        block: The method's block.
        nets: The networks.
        teacher: Backbone.
        student: Backbone.
        batch: Images of a step.
        strata: Whether batches are drawn evenly over strata.
    """
    tally: Tally = Counter()
    tally[Work("forward", nets.backbone(teacher), batch)] += 1
    tally[Work("train", nets.backbone(student), batch)] += 1
    if isinstance(block, Mosaick):
        # kdci/methods/mosaick.py, `batch`: half of it made anew; with strata picked out of
        # twice as many, which the teacher labels.
        made = 2 * (batch // 2) if strata else batch // 2
        tally[Work("generate", _large(block, nets), max(made, 2))] += 1
        if strata:
            tally[Work("forward", nets.backbone(teacher), made)] += 1
    return tally


def labelling_steps(
    block: MethodBlock, nets: Nets, teacher: str, recipe: StudentRecipe, num_images: int
) -> Tally:
    """Return what strata take beside the batches: kdci/substitution/bank_source.py, ``next_rows``.

    Args:
        block: The method's block.
        nets: The networks.
        teacher: Backbone.
        recipe: Of the student.
        num_images: Images that batches are drawn from before the first refresh.
    """
    added, labelled = block.num_refresh_images, nets.backbone(teacher)
    tally = passes("forward", labelled, num_images + added, STRATUM_BATCH)
    if added:
        tally += times(
            passes("forward", labelled, added, STRATUM_BATCH), block.num_refreshes(recipe) - 1
        )
    return tally


def construction_steps(block: MethodBlock, nets: Nets, teacher: str) -> Tally:
    """Return what building a method's source takes, in substitute and in each distill."""
    if isinstance(block, Cmi):  # kdci/methods/cmi.py, `_num_features`
        return Counter({Work("forward", nets.backbone(teacher), 1): 1})
    return Counter()


def call_steps(block: MethodBlock, nets: Nets, teacher: str, student: str | None) -> Tally:
    """Return one synthesis step at full resolution, each of its parts once.

    What one step holds at a time is what its memory is found from.
    """
    build = _CALLS.get(type(block))
    if build is None:
        return Counter()
    seen = None if student is None else nets.backbone(student)
    works = build(block, nets, nets.backbone(teacher), seen)
    return Counter({work: 1 for work in works if work.subject.spec == nets.spec})


# -- pools ------------------------------------------------------------------------------------


def _dafl_pool(block: Dafl, nets: Nets, teacher: Subject, num_open_world: int) -> Tally:
    """kdci/methods/dafl.py: `_step` a generator step, `_train_part` a batch of images."""
    tally = times(_dafl_step(block, nets, teacher, None), block.num_steps)
    generator = nets.generator(_dafl_name(block), block.latent_dim, block.generator_width)
    sampled = Work("generate", generator, block.batch_size)
    tally[sampled] += block.num_pool_images // block.batch_size
    return tally


def _fast_pool(block: Fast, nets: Nets, teacher: Subject, num_open_world: int) -> Tally:
    """kdci/methods/fast.py: `prepare` makes `warmup_calls` calls without a student."""
    return times(_fast_call(block, nets, teacher, None), block.warmup_calls)


def _cmi_pool(block: Cmi, nets: Nets, teacher: Subject, num_open_world: int) -> Tally:
    """kdci/methods/cmi.py: `prepare` makes `warmup_calls` calls without a student."""
    return times(_cmi_call(block, nets, teacher, None), block.warmup_calls)


def _deepinv_pool(block: DeepInv, nets: Nets, teacher: Subject, num_open_world: int) -> Tally:
    """kdci/methods/deepinv.py: `prepare` makes `warmup_calls` calls without a student."""
    return times(_deepinv_call(block, nets, teacher, None), block.warmup_calls)


def _mosaick_pool(block: Mosaick, nets: Nets, teacher: Subject, num_open_world: int) -> Tally:
    """kdci/methods/mosaick.py: scores, then `warmup_steps` of the game without a student.

    Samples join at the end of each part in the second half, in whole batches.
    """
    tally = passes("forward", teacher, num_open_world, block.score_batch_size)
    tally += times(_mosaick_game(block, nets, teacher, None), block.warmup_steps)
    part = -(-block.warmup_steps // MOSAICK_PARTS)
    ends = [*range(part, block.warmup_steps, part), block.warmup_steps]
    num_portions = sum(2 * end > block.warmup_steps for end in ends)
    due = [block.num_samples * done // num_portions for done in range(num_portions + 1)]
    batches = sum(-(-(due[i + 1] - due[i]) // block.batch_size) for i in range(num_portions))
    tally[Work("generate", _large(block, nets), block.batch_size)] += batches
    return tally


def _dfnd_pool(block: Dfnd, nets: Nets, teacher: Subject, num_open_world: int) -> Tally:
    """kdci/methods/dfnd.py: the teacher scores the open world."""
    return passes("forward", teacher, num_open_world, block.score_batch_size)


def _noise_pool(block: Noise, nets: Nets, teacher: Subject, num_open_world: int) -> Tally:
    """kdci/methods/noise.py: no network is asked."""
    return Counter()


_POOLS: dict[type[MethodBlock], Callable[[Any, Nets, Subject, int], Tally]] = {
    Dafl: _dafl_pool,
    Fast: _fast_pool,
    Cmi: _cmi_pool,
    DeepInv: _deepinv_pool,
    Mosaick: _mosaick_pool,
    Dfnd: _dfnd_pool,
    Noise: _noise_pool,
}


# -- refreshes --------------------------------------------------------------------------------


def _fast_refresh(
    block: Fast, nets: Nets, teacher: Subject, student: Subject, recipe: StudentRecipe
) -> Tally:
    """kdci/methods/fast.py, `refresh`: a call an epoch, with the student from the second."""
    adversarial = times(_fast_call(block, nets, teacher, student), recipe.num_epochs - 1)
    return _fast_call(block, nets, teacher, None) + adversarial


def _cmi_refresh(
    block: Cmi, nets: Nets, teacher: Subject, student: Subject, recipe: StudentRecipe
) -> Tally:
    """kdci/methods/cmi.py, `refresh`: a call an epoch, with the student if it has weight."""
    seen = student if block.adversarial_weight else None
    return times(_cmi_call(block, nets, teacher, seen), recipe.num_epochs)


def _deepinv_refresh(
    block: DeepInv, nets: Nets, teacher: Subject, student: Subject, recipe: StudentRecipe
) -> Tally:
    """kdci/methods/deepinv.py, `refresh`: as CMI's."""
    seen = student if block.adversarial_weight > 0 else None
    return times(_deepinv_call(block, nets, teacher, seen), recipe.num_epochs)


def _mosaick_refresh(
    block: Mosaick, nets: Nets, teacher: Subject, student: Subject, recipe: StudentRecipe
) -> Tally:
    """kdci/methods/mosaick.py, `refresh`: a game step every few distillation steps."""
    return times(_mosaick_game(block, nets, teacher, student), block.num_refreshes(recipe))


_REFRESHES: dict[
    type[MethodBlock], Callable[[Any, Nets, Subject, Subject, StudentRecipe], Tally]
] = {
    Fast: _fast_refresh,
    Cmi: _cmi_refresh,
    DeepInv: _deepinv_refresh,
    Mosaick: _mosaick_refresh,
}


# -- calls and game steps ---------------------------------------------------------------------


def _fast_call(block: Fast, nets: Nets, teacher: Subject, student: Subject | None) -> Tally:
    """kdci/methods/fast.py, `_invert`: K steps of a copied generator."""
    generator = nets.generator("small", block.latent_dim, block.generator_width)
    tally: Tally = Counter()
    tally[Work("fit", generator, block.batch_size)] = block.num_steps
    tally[Work("invert", teacher, block.batch_size)] = block.num_steps
    if student is not None:
        tally[Work("differentiate", student, block.batch_size)] = block.num_steps
    return tally


def _cmi_call(block: Cmi, nets: Nets, teacher: Subject, student: Subject | None) -> Tally:
    """kdci/methods/cmi.py, `_invert`: as Fast's, and the local views with their contrast."""
    generator = nets.generator("small", block.latent_dim, block.generator_width)
    tally: Tally = Counter()
    tally[Work("fit", generator, block.batch_size)] = block.num_steps
    tally[Work("invert", teacher, block.batch_size)] = block.num_steps
    if block.contrastive_weight:
        sizes = (block.projection_dim, block.num_negatives)
        head = Subject("head", teacher.name, teacher.spec, teacher.stem, sizes)
        tally[Work("differentiate", teacher, block.batch_size)] = block.num_steps
        tally[Work("contrast", head, block.batch_size)] = block.num_steps
    if student is not None:
        tally[Work("differentiate", student, block.batch_size)] += block.num_steps
    return tally


def _deepinv_call(block: DeepInv, nets: Nets, teacher: Subject, student: Subject | None) -> Tally:
    """kdci/methods/deepinv.py, `_invert`: a stage of half the resolution, then the whole."""
    half = replace(nets.spec, image_size=nets.spec.image_size // 2)
    tally: Tally = Counter()
    for spec, num_steps in ((half, block.low_resolution_steps), (nets.spec, block.num_steps)):
        if num_steps:
            tally[Work("invert", replace(teacher, spec=spec), block.batch_size)] = num_steps
        if num_steps and student is not None:
            tally[Work("differentiate", replace(student, spec=spec), block.batch_size)] = num_steps
    return tally


def _mosaick_game(block: Mosaick, nets: Nets, teacher: Subject, student: Subject | None) -> Tally:
    """kdci/synthesis/patch_game.py, `step`: discriminator, generator, teacher, student."""
    size = block.batch_size
    judge = Subject("discriminator", "patch", nets.spec, sizes=(block.discriminator_width,))
    tally: Tally = Counter()
    tally[Work("fit", _large(block, nets), size)] = 1
    tally[Work("play", judge, size)] = 1
    tally[Work("differentiate", teacher, size)] = 1
    if student is not None:
        tally[Work("differentiate", student, size)] += 1
    return tally


def _dafl_step(block: Dafl, nets: Nets, teacher: Subject, student: Subject | None) -> Tally:
    """kdci/methods/dafl.py, `_step`: generator and teacher."""
    generator = nets.generator(_dafl_name(block), block.latent_dim, block.generator_width)
    size = block.batch_size
    return Counter({Work("fit", generator, size): 1, Work("differentiate", teacher, size): 1})


_CALLS: dict[type[MethodBlock], Callable[[Any, Nets, Subject, Subject | None], Tally]] = {
    Dafl: _dafl_step,
    Fast: _fast_call,
    Cmi: _cmi_call,
    DeepInv: _deepinv_call,
    Mosaick: _mosaick_game,
}


def _large(block: Mosaick, nets: Nets) -> Subject:
    return nets.generator("large", block.latent_dim, block.generator_width)


def _dafl_name(block: Dafl) -> str:
    return "small" if block.generator == "small" else "original"
