"""What a network computes in: chosen by time, with a preference, and kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from kdci.config.catalog import DATASETS
from kdci.models import build_pixel_model
from kdci.training.arithmetic import (
    CLEARLY_FASTER,
    MOST_IMAGES,
    ComputeFormat,
    choose,
    measure,
    pass_of,
    remembered,
)

LAST, CONTIGUOUS = ComputeFormat("fp32", "channels_last"), ComputeFormat("fp32", "contiguous")
HALF = ComputeFormat("bf16", "channels_last")
CPU = torch.device("cpu")
SUBJECT = {"backbone": "wrn-10-1", "role": "frozen"}


def test_a_later_candidate_has_to_be_clearly_faster() -> None:
    assert choose({LAST: 1.0, CONTIGUOUS: 1.01 / CLEARLY_FASTER}) == LAST
    assert choose({LAST: 1.0, CONTIGUOUS: 0.99 / CLEARLY_FASTER}) == CONTIGUOUS
    # Against the one chosen so far, not against the first.
    assert choose({HALF: 1.0, LAST: 0.5, CONTIGUOUS: 0.45}) == LAST
    assert choose({HALF: 3.0}) == HALF


def test_the_slower_one_is_measured_as_slower() -> None:
    def build(one: ComputeFormat):
        def step(images: int) -> None:
            until = time.process_time() + images * (4e-3 if one == CONTIGUOUS else 1e-3)
            while time.process_time() < until:
                pass

        return step

    seconds = measure(build, [LAST, CONTIGUOUS], CPU)
    assert list(seconds) == [LAST, CONTIGUOUS]
    assert 3 < seconds[CONTIGUOUS] / seconds[LAST] < 5


def test_large_networks_are_tried_on_few_images_and_small_ones_on_no_more_than_needed() -> None:
    calls: list[int] = []

    def slow(images: int) -> None:
        calls.append(images)
        until = time.process_time() + 0.06
        while time.process_time() < until:
            pass

    measure(lambda _: slow, [LAST], CPU)
    assert set(calls) == {4}
    calls.clear()
    measure(lambda _: calls.append, [LAST], CPU)
    assert max(calls) == MOST_IMAGES


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_is_forward_alone_or_with_gradients(training: bool) -> None:
    spec = DATASETS["digits"]
    model = build_pixel_model("wrn-10-1", spec)
    pass_of(model, (spec.channels, 16, 16), training=training)(3)
    assert model.training is training
    gradients = [weight.grad is not None for weight in model.parameters()]
    assert all(gradients) if training else not any(gradients)


def test_a_decision_holds_until_what_it_is_for_changes(tmp_path: Path) -> None:
    def never() -> dict[ComputeFormat, float]:
        raise AssertionError("probed again")

    slow = {LAST: 1.0, CONTIGUOUS: 0.1}
    assert remembered(tmp_path / "formats", SUBJECT, lambda: slow) == CONTIGUOUS
    assert remembered(tmp_path / "formats", SUBJECT, never) == CONTIGUOUS
    other = {**SUBJECT, "role": "trained"}
    assert remembered(tmp_path / "formats", other, lambda: {LAST: 1.0}) == LAST
    records = [json.loads(file.read_text()) for file in (tmp_path / "formats").iterdir()]
    seconds = {r["subject"]["role"]: r["seconds"] for r in records}
    assert seconds["frozen"] == {"fp32 channels_last": 1.0, "fp32 contiguous": 0.1}


def test_of_two_that_decide_at_once_the_first_on_disk_holds(tmp_path: Path) -> None:
    def meanwhile() -> dict[ComputeFormat, float]:
        remembered(tmp_path, SUBJECT, lambda: {LAST: 1.0})
        return {CONTIGUOUS: 1.0}

    assert remembered(tmp_path, SUBJECT, meanwhile) == LAST


def test_a_damaged_decision_is_made_anew(tmp_path: Path) -> None:
    remembered(tmp_path, SUBJECT, lambda: {LAST: 1.0})
    (file,) = tmp_path.iterdir()
    for content in (b"", b"[]", b'{"chosen": {"speed": 1}}'):
        file.write_bytes(content)
        assert remembered(tmp_path, SUBJECT, lambda: {CONTIGUOUS: 1.0}) == CONTIGUOUS
