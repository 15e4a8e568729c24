from __future__ import annotations

import numpy as np
import pytest
import torch

from kdci.models.pretrained import load_teacher
from kdci.store.artifacts import open_artifact

METHODS = ["fast", "dfnd"]


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def pool(smoke_project, method):
    return open_artifact(smoke_project.layout.pool("wrn-10-1", method, 0), kind="pool")


def test_pool_and_holdout_share_what_was_made(pool, method):
    images, holdout = np.load(pool.file("images.npy")), np.load(pool.file("holdout.npy"))
    made = {"fast": 32, "dfnd": 64}[method]
    assert len(holdout) == round(0.05 * made)
    assert len(images) + len(holdout) == made
    assert images.dtype == holdout.dtype == np.uint8
    assert images.shape[1:] == holdout.shape[1:] == (1, 16, 16)


def test_predictions_are_the_teachers(pool, smoke_project):
    artifact = open_artifact(smoke_project.layout.teacher("wrn-10-1"), kind="teacher")
    teacher = load_teacher(artifact, smoke_project.params.data.spec)
    images = torch.from_numpy(np.load(pool.file("images.npy"))).float() / 255
    with torch.no_grad():
        logits = teacher(images).logits
    stored = pool.tensors("predictions.safetensors")["logits"]
    torch.testing.assert_close(stored, logits, rtol=1e-4, atol=1e-4)
    classes = logits.argmax(dim=1)
    shares = [float((classes == k).double().mean()) for k in range(10)]
    assert pool.facts["proportions"] == pytest.approx(shares)
    assert pool.facts["missing_classes"] == [k for k in range(10) if shares[k] == 0]
    sure = logits.softmax(dim=1).amax(dim=1).mean()
    assert pool.facts["confidence"] == pytest.approx(float(sure), abs=1e-4)


def test_same_seed_same_bytes_another_seed_other_bytes(built, call, method):
    this = call("substitute", method)
    expected = built.content(this)
    built.build(this)
    assert built.content(this) == expected
    built.edit(grid__pool_seeds=[0, 1])
    other = next(
        c
        for c in built.calls()
        if c.stage == "substitute"
        and built.node(c).method == method
        and built.node(c).point["pool_seed"] == 1
    )
    built.build(other)
    assert built.content(other) != expected


def test_pool_does_not_depend_on_how_many_images_are_scored_at_once(built, call, method):
    """`evaluate` is no params block of this stage, so none of its values may matter."""
    this = call("substitute", method)
    expected = built.content(this)
    built.edit(evaluate__batch_size=3).build(this)
    assert built.content(this) == expected
