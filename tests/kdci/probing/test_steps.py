"""Each kind of step runs, trains what it is to train, and leaves the rest as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from kdci.probing.steps import step_of
from kdci.probing.subjects import Kind, Subject, build_subject, count_features
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.training.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), 1, "fp32")
DIGITS = DATASETS["digits"]
BACKBONE = Subject("backbone", "wrn-10-1", DIGITS)
SUBJECTS: dict[Kind, Subject] = {
    "forward": BACKBONE,
    "train": BACKBONE,
    "differentiate": BACKBONE,
    "invert": BACKBONE,
    "fit": Subject("generator", "small", DIGITS, sizes=(12, 8)),
    "generate": Subject("generator", "original", DIGITS, sizes=(12, 8)),
    "play": Subject("discriminator", "patch", DIGITS, sizes=(8,)),
    "contrast": Subject("head", "wrn-10-1", DIGITS, sizes=(6, 10)),
}
TRAINED = {"train", "fit", "play", "contrast"}
# In train mode a forward pass moves BatchNorm's running statistics.
MOVED = TRAINED | {"generate"}


def weights_of(module: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


@pytest.mark.parametrize(("kind", "subject"), SUBJECTS.items())
def test_a_step_trains_what_it_is_to_train(kind: Kind, subject: Subject) -> None:
    module = build_subject(subject, RUNTIME)
    weights, state = weights_of(module), copy.deepcopy(module.state_dict())
    step = step_of(kind, subject, module, RUNTIME)
    for batch in (4, 2):
        step(batch)
    stays = all(map(torch.equal, weights, weights_of(module)))
    assert stays == (kind not in TRAINED)
    same = all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert same == (kind not in MOVED)


@pytest.mark.parametrize(("kind", "subject"), SUBJECTS.items())
def test_networks_see_batches_of_the_size_that_is_asked_for(kind: Kind, subject: Subject) -> None:
    module = build_subject(subject, RUNTIME)
    rows: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    step_of(kind, subject, module, RUNTIME)(5)
    assert rows == {"play": [5, 5, 5], "contrast": [5, 10, 15]}.get(kind, [5])


def test_kinds_may_share_a_network() -> None:
    module = build_subject(BACKBONE, RUNTIME)
    for kind in ("invert", "train", "forward", "train", "differentiate"):
        step_of(kind, BACKBONE, module, RUNTIME)(4)
        assert module.training == (kind == "train")


def test_the_random_stream_of_others_stays_where_it_is() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for subject in dict.fromkeys(SUBJECTS.values()):
        build_subject(subject, RUNTIME)
    assert torch.equal(torch.rand(1), expected)


def test_heads_project_what_cmi_reads() -> None:
    """Of a WRN the inputs of all its BatchNorms: 16 twice, 16 and 32, 32 and 64, 64."""
    found = count_features(BACKBONE, RUNTIME)
    norms = [m for m in build_subject(BACKBONE, RUNTIME).modules() if isinstance(m, nn.BatchNorm2d)]
    assert found == sum(norm.num_features for norm in norms)
    head = build_subject(SUBJECTS["contrast"], RUNTIME)
    assert sum(w.numel() for w in head.parameters()) == found * found + found + 6 * found + 6
