from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.mapped_images import MappedImages
from kdci.methods.noise import Noise, NoiseSource
from kdci.models import PixelModel
from kdci.models.states import State
from kdci.store.artifacts import new_artifact, open_artifact
from kdci.substitution.base import SourceContext
from kdci.substitution.pool_files import continue_source, pool_logits, split_holdout, write_pool
from kdci.training.runtime import generator

SPEC = DatasetSpec("plain", 3, 8, 1, (0.5,), (0.5,), 0, False, ("a", "b", "c"))
SIZE = 20


class Counting(NoiseSource):
    """With a state of its own, as a generator or a memory would be."""

    calls = 0

    def state_dict(self) -> State:
        return {**super().state_dict(), "calls": self.calls}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.calls = state["calls"]


def make_source(teacher: PixelModel, tail: Path, base: Path | None = None) -> Counting:
    bank = ImageBank(tail, shape=SPEC.image_shape, base=base)
    return Counting(SourceContext(teacher, SPEC, bank, 7, 0.9), Noise(num_images=SIZE))


def test_a_split_holds_out_a_share_and_at_least_one() -> None:
    kept, held = split_holdout(SIZE, 0.2, generator(0))
    assert len(held) == 4 and torch.equal(torch.cat([kept, held]).sort().values, torch.arange(SIZE))
    assert torch.equal(kept, kept.sort().values) and torch.equal(held, held.sort().values)
    assert len(split_holdout(SIZE, 0.001, generator(0))[1]) == 1


def test_a_source_goes_on_from_the_pool_that_it_made(
    tmp_path: Path, tiny_model: Callable[[int], PixelModel]
) -> None:
    teacher = tiny_model(0)
    source = make_source(teacher, tmp_path / "bank.bin")
    for _ in source.prepare():
        source.calls += 1
    made = source.bank
    kept, held = split_holdout(SIZE, 0.2, generator(0))
    with new_artifact(tmp_path / "pool", kind="pool", card={}) as draft:
        draft.card["facts"] = write_pool(
            draft,
            teacher=teacher,
            images=made.chunks(kept),
            holdout=made.chunks(held),
            num_holdout=len(held),
            source=source,
            kept=kept,
            tail=tmp_path / "kept.bin",
        )
    pool = open_artifact(tmp_path / "pool", kind="pool")
    images = MappedImages(pool.file("images.npy"))
    assert torch.equal(images[:], made.rows(kept))
    assert torch.equal(MappedImages(pool.file("holdout.npy"))[:], made.rows(held))
    logits = pool_logits(pool)
    assert torch.allclose(logits, teacher(images[:].float() / 255).logits, atol=1e-5)
    assert (pool.facts["num_images"], pool.facts["num_holdout"]) == (16, 4)
    shares = torch.bincount(logits.argmax(dim=1), minlength=3) / 16
    assert torch.allclose(torch.tensor(pool.facts["proportions"]), shares)

    again = make_source(teacher, tmp_path / "student.bin", pool.file("images.npy"))
    continue_source(again, pool, seed=11)
    other = make_source(teacher, tmp_path / "other.bin", pool.file("images.npy"))
    continue_source(other, pool, seed=12)
    assert len(again.bank) == 16 and again.calls == source.calls > 0
    assert not torch.equal(again.batch(8), other.batch(8))
