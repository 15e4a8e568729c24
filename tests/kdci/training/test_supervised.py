from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kdci.config.catalog import DatasetSpec
from kdci.data.datasets.labelled import LabelledImages
from kdci.data.files.image_files import ImageFiles
from kdci.errors import NumericError
from kdci.models import PixelModel, build_backbone
from kdci.store.checkpoints import Checkpoints
from kdci.training.supervised import SupervisedTrainer

PLAIN = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 0, False, ("a", "b", "c"))
AUGMENTED = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 1, True, ("a", "b", "c"))
NUM_IMAGES, BATCH_SIZE = 40, 16  # 3 steps an epoch, the last of them into the next pass

MakeModel = Callable[[int], PixelModel]
Flatten = Callable[[Any], dict[str, object]]


class Sink:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, **values: float) -> None:
        self.rows.append((step, values))


def make_data() -> LabelledImages:
    """Return images whose brightness says their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (NUM_IMAGES,), generator=generator)
    noise = torch.randint(0, 60, (NUM_IMAGES, 1, 8, 8), generator=generator)
    images = (noise + 90 * labels[:, None, None, None]).to(torch.uint8)
    return LabelledImages(images, labels)


def make_trainer(make_model: MakeModel, **changes: Any) -> tuple[SupervisedTrainer, Sink]:
    sink = Sink()
    options: dict[str, Any] = {
        "model": make_model(1),
        "data": make_data(),
        "spec": AUGMENTED,
        "sink": sink,
        "num_epochs": 3,
        "batch_size": BATCH_SIZE,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "seed": 0,
    }
    return SupervisedTrainer(**{**options, **changes}), sink


def watch(trainer: SupervisedTrainer) -> list[tuple[Tensor, Tensor]]:
    """Return a list that receives every batch."""
    batches: list[tuple[Tensor, Tensor]] = []
    draw = trainer._batch

    def batch() -> tuple[Tensor, Tensor]:
        batches.append(draw())
        return batches[-1]

    trainer._batch = batch  # type: ignore[method-assign]
    return batches


def advance(trainer: SupervisedTrainer, num_steps: int) -> None:
    steps = trainer.run()
    for _ in range(num_steps):
        next(steps)


def outcome(trainer: SupervisedTrainer, sink: Sink, flatten: Flatten) -> dict[str, object]:
    return flatten({"state": trainer.state_dict(), "metrics": sink.rows})


def test_equals_a_hand_written_loop(tiny_model: MakeModel) -> None:
    """SGD with Nesterov momentum, decayed weights and a cosine, written out."""
    trainer, sink = make_trainer(tiny_model)
    batches = watch(trainer)
    assert list(trainer.run()) == list(range(1, 10))
    model = tiny_model(1).train()
    velocity = [torch.zeros_like(weight) for weight in model.parameters()]
    losses, hits = [], []
    for step, (images, labels) in enumerate(batches):
        logits = model(images).logits
        loss = F.cross_entropy(logits, labels)
        losses.append(float(loss.detach()))
        matches = zip(logits.argmax(1), labels, strict=True)
        hits.append(100 * sum(int(a == b) for a, b in matches) / BATCH_SIZE)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rate = 0.1 * (1 + math.cos(math.pi * step / 9)) / 2
        with torch.no_grad():
            for weight, speed, gradient in zip(
                model.parameters(), velocity, gradients, strict=True
            ):
                gradient = gradient + 5e-4 * weight
                speed.mul_(0.9).add_(gradient)
                weight.sub_(rate * (gradient + 0.9 * speed))
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-5, rtol=1e-4)
    assert [epoch for epoch, _ in sink.rows] == [1, 2, 3]
    for (_, row), start in zip(sink.rows, (0, 3, 6), strict=True):
        assert row["loss"] == pytest.approx(sum(losses[start : start + 3]) / 3, rel=1e-4)
        assert row["train_accuracy"] == pytest.approx(sum(hits[start : start + 3]) / 3)


def test_every_image_is_met_once_a_pass_with_its_label(tiny_model: MakeModel) -> None:
    data = make_data()
    trainer, _ = make_trainer(tiny_model, spec=PLAIN, batch_size=10, data=data)
    batches = watch(trainer)
    advance(trainer, 4)
    met = sorted(
        (tuple((image * 255).round().flatten().int().tolist()), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    )
    expected = sorted(
        (tuple(image.flatten().int().tolist()), int(label))
        for image, label in zip(data.images[:], data.labels, strict=True)
    )
    assert met == expected


def test_augments_as_the_dataset_allows(tiny_model: MakeModel) -> None:
    trainer, _ = make_trainer(
        tiny_model,
        data=LabelledImages(
            torch.full((NUM_IMAGES, 1, 8, 8), 255, dtype=torch.uint8), make_data().labels
        ),
    )
    batches = watch(trainer)
    advance(trainer, 1)
    images, _ = batches[0]
    assert bool((images == 0).any())  # padding that a crop let in
    assert float(images.max()) == 1.0


def test_learns(tiny_model: MakeModel) -> None:
    trainer, sink = make_trainer(tiny_model, spec=PLAIN, num_epochs=25)
    list(trainer.run())
    assert sink.rows[-1][1]["loss"] < 0.5 * sink.rows[0][1]["loss"]
    assert sink.rows[-1][1]["train_accuracy"] > 90


def test_a_batch_larger_than_the_data_is_all_of_it(tiny_model: MakeModel) -> None:
    trainer, _ = make_trainer(tiny_model, batch_size=1000, num_epochs=2)
    assert (trainer.batch_size, trainer.num_steps) == (NUM_IMAGES, 2)


def test_same_seed_twice_same_bytes(tiny_model: MakeModel, flatten: Flatten) -> None:
    outcomes = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        trainer, sink = make_trainer(tiny_model, seed=seed)
        list(trainer.run())
        assert torch.equal(torch.get_rng_state(), before)
        outcomes.append(outcome(trainer, sink, flatten))
    assert outcomes[0] == outcomes[1] != outcomes[2]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resumes_bit_for_bit(
    tmp_path: Path, tiny_model: MakeModel, flatten: Flatten, stop: int
) -> None:
    """R3: going on in the same process against fresh objects restored from disk."""
    whole, sink = make_trainer(tiny_model)
    batches = watch(whole)
    advance(whole, stop)
    Checkpoints(tmp_path).save(stop, whole.state_dict())
    logged = sink.rows[:]
    advance(whole, 9 - stop)

    torch.manual_seed(99)
    resumed, resumed_sink = make_trainer(tiny_model, model=tiny_model(2))
    resumed_batches = watch(resumed)
    state = Checkpoints(tmp_path).load_newest()
    assert state is not None
    resumed.load_state_dict(state)
    resumed_sink.rows.extend(logged)
    assert list(resumed.run()) == list(range(stop + 1, 10))
    for (a, b), (c, d) in zip(batches[stop:], resumed_batches, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert outcome(resumed, resumed_sink, flatten) == outcome(whole, sink, flatten)


@pytest.mark.parametrize("dropped", ["step", "model", "optimizer", "rows", "augmentation", "means"])
def test_the_oracle_sees_each_part_that_is_lost(
    tmp_path: Path, tiny_model: MakeModel, flatten: Flatten, dropped: str
) -> None:
    """Mutation check."""
    whole, sink = make_trainer(tiny_model)
    advance(whole, 5)
    Checkpoints(tmp_path).save(5, whole.state_dict())
    logged = sink.rows[:]
    advance(whole, 4)
    resumed, resumed_sink = make_trainer(tiny_model, model=tiny_model(2))
    state = Checkpoints(tmp_path).load_newest()
    assert state is not None
    resumed.load_state_dict({**state, dropped: resumed.state_dict()[dropped]})
    resumed_sink.rows.extend(logged)
    list(resumed.run())
    assert outcome(resumed, resumed_sink, flatten) != outcome(whole, sink, flatten)


def test_a_network_that_asks_for_a_version_is_resumed(tmp_path: Path) -> None:
    """MNASNet reads no tensors without it, and a checkpoint has plain tensors alone."""

    def mnasnet(seed: int) -> PixelModel:
        torch.manual_seed(seed)
        backbone = build_backbone("torchvision-mnasnet0_5", num_classes=3, channels=1)
        return PixelModel(backbone, mean=(0.4,), std=(0.3,))

    whole, _ = make_trainer(mnasnet)
    Checkpoints(tmp_path).save(1, whole.state_dict())
    resumed, _ = make_trainer(mnasnet, model=mnasnet(2))
    state = Checkpoints(tmp_path).load_newest()
    assert state is not None
    resumed.load_state_dict(state)
    found = resumed.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in whole.model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_within_the_step(tiny_model: MakeModel) -> None:
    """R9."""
    trainer, sink = make_trainer(tiny_model)
    advance(trainer, 3)
    with torch.no_grad():
        trainer.model.get_parameter("backbone.head.bias")[0] = math.nan
    weight = trainer.model.get_parameter("backbone.conv.weight")
    before = weight.detach().clone()
    with pytest.raises(NumericError, match="teacher step 4: the loss is nan") as caught:
        next(trainer.run())
    assert caught.value.exit_code == 5 and trainer.step == 3 and len(sink.rows) == 1
    assert torch.equal(weight, before)


def test_a_learning_rate_out_of_all_bounds(tiny_model: MakeModel) -> None:
    trainer, _ = make_trainer(tiny_model, learning_rate=1e9, num_epochs=40)
    with pytest.raises(NumericError, match=r"lower teacher\.learning_rate"):
        list(trainer.run())
    assert trainer.step < 30


def test_images_in_files_train_the_same_teacher(
    tiny_model: MakeModel, flatten: Flatten, tmp_path: Path
) -> None:
    """Bit for bit, with boxes of the image enlarged as for ImageNet."""
    data = make_data()
    files = [str(tmp_path / f"{number:02}.png") for number in range(NUM_IMAGES)]
    for file, image in zip(files, data.images[:], strict=True):
        Image.fromarray(image[0].numpy()).save(file)
    photos = replace(AUGMENTED, resized_crop=(0.3, 1.0))
    outcomes = []
    for images in (data.images, ImageFiles(files, photos)):
        labelled = LabelledImages(images, data.labels)
        trainer, sink = make_trainer(tiny_model, data=labelled, spec=photos)
        assert list(trainer.run()) == list(range(1, 10))
        outcomes.append(outcome(trainer, sink, flatten))
    assert outcomes[0] == outcomes[1]
    plain, sink = make_trainer(tiny_model)
    list(plain.run())
    assert outcome(plain, sink, flatten) != outcomes[0]
