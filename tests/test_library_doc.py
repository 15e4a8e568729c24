"""docs/library.md: its code is run as it stands there, in a project that knows nothing of kdci."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from tests.project_code import ROOT

BLOCKS = re.findall(
    r"^```python\n(.*?)^```$",
    (ROOT / "docs/library.md").read_text(encoding="utf-8"),
    flags=re.DOTALL | re.MULTILINE,
)
LOOP, DEPLOY, FEATURES, STRATA, LOAD = BLOCKS
MARK = "# KDCI"
VANILLA = "".join(line for line in LOOP.splitlines(keepends=True) if MARK not in line)

# -- a user's own teacher, student and substitutes -------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What the page calls `teacher`, `student` and `substitutes`, and what nobody has there."""

    teacher: nn.Module
    student: nn.Module
    substitutes: Tensor
    test_images: Tensor
    test_labels: Tensor


def fully_connected(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained_on(images: Tensor, labels: Tensor) -> nn.Module:
    model = fully_connected(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def shifted(images: Tensor, labels: Tensor) -> Tensor:
    """Return 1500 noisy images, 40 times as many of the first class as of the last."""
    weights = torch.logspace(0, -1.6, 10)[labels]
    rows = torch.multinomial(weights, 1500, replacement=True)
    return (images[rows] + 0.15 * torch.randn(1500, 1, 8, 8)).clamp(0, 1)


@pytest.fixture(scope="module")
def setup() -> Setup:
    torch.manual_seed(0)
    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(classes).long()
    rows = torch.randperm(len(images))
    train, test = rows[:900], rows[900:]
    teacher = trained_on(images[train], labels[train])
    substitutes = shifted(images[train], labels[train])
    return Setup(teacher, fully_connected(64, 24, 10), substitutes, images[test], labels[test])


def run(code: str, setup: Setup, **more: Any) -> dict[str, Any]:
    """Run a block of the page on a copy of the student and return its names."""
    names: dict[str, Any] = {
        "teacher": setup.teacher,
        "student": copy.deepcopy(setup.student),
        "substitutes": setup.substitutes,
        **more,
    }
    torch.manual_seed(1)
    exec(compile(code, "docs/library.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def kdci(setup: Setup) -> dict[str, Any]:
    """The names that the page's loop leaves."""
    return run(LOOP, setup)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * float((model(images).argmax(dim=1) == labels).float().mean())


def agreement(model: nn.Module, setup: Setup) -> float:
    with torch.no_grad():
        classes = setup.teacher(setup.substitutes).argmax(dim=1)
    return accuracy(model, setup.substitutes, classes)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- the loop --------------------------------------------------------------------------------------


def test_the_loop_is_about_twenty_lines_and_kdci_five_of_them() -> None:
    lines = [line for line in LOOP.splitlines() if line.strip()]
    assert len(lines) <= 22
    assert len([line for line in lines if MARK in line]) == 5
    assert "kdci" not in VANILLA and "phi" not in VANILLA


def test_a_student_learns_a_real_teacher_on_shifted_substitutes(
    setup: Setup, kdci: dict[str, Any]
) -> None:
    assert accuracy(setup.teacher, setup.test_images, setup.test_labels) > 90
    counts = setup.teacher(setup.substitutes).argmax(dim=1).bincount(minlength=10)
    assert counts.max() > 10 * counts.min()
    assert agreement(setup.student, setup) < 30
    assert agreement(kdci["student"], setup) > 85
    assert accuracy(kdci["student"], setup.test_images, setup.test_labels) > 75


def test_the_module_learns_and_the_dictionary_stays(setup: Setup, kdci: dict[str, Any]) -> None:
    phi, z = kdci["phi"], kdci["z"]
    assert torch.equal(phi.prototypes_ND, z.prototypes_ND)
    assert torch.equal(phi.factors_N, z.proportions_N)
    fresh = type(phi)(z.prototypes_ND, z.proportions_N, num_classes=10)
    before, after = dict(fresh.named_parameters()), dict(phi.named_parameters())
    assert before.keys() == after.keys() == {"w_q.weight", "w_k.weight", "w_t.weight"}
    assert not any(torch.equal(before[name], after[name]) for name in before)
    predictions = setup.teacher(setup.substitutes)
    means = [predictions[z.assignments_M == i].mean(dim=0) for i in range(len(z))]
    torch.testing.assert_close(z.prototypes_ND, torch.stack(means), atol=1e-4, rtol=1e-4)


def test_without_the_marked_lines_it_is_plain_distillation(setup: Setup) -> None:
    student = copy.deepcopy(setup.student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with torch.no_grad():
        targets = setup.teacher(setup.substitutes).softmax(dim=1)
    torch.manual_seed(1)
    for _ in range(20):
        for rows in torch.randperm(len(targets)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(student(setup.substitutes[rows]), targets[rows]).backward()
            optimizer.step()
    assert same_weights(run(VANILLA, setup)["student"], student)


def test_both_loops_meet_the_same_batches(setup: Setup, kdci: dict[str, Any]) -> None:
    """With F(z) times 0 the two students are one to the bit; as the page has it they are not."""
    plain = run(VANILLA, setup)["student"]
    silent = LOOP.replace("num_classes=10)", "num_classes=10, scale=0.0)")
    assert silent != LOOP
    assert same_weights(run(silent, setup)["student"], plain)
    assert not same_weights(kdci["student"], plain)


def test_the_loop_runs_under_autocast(setup: Setup) -> None:
    # The cache of cast weights would outlive a step here.
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        names = run(LOOP.replace("range(20)", "range(10)"), setup)
    assert agreement(names["student"], setup) > 85
    assert all(parameter.dtype == torch.float32 for parameter in names["phi"].parameters())


# -- what follows it -------------------------------------------------------------------------------


def test_it_deploys_with_the_module_and_without(setup: Setup, kdci: dict[str, Any]) -> None:
    names = run("import torch\n" + DEPLOY, setup, student=kdci["student"], phi=kdci["phi"])
    backbone, compensated = names["backbone"], names["compensated"]
    assert not backbone.training and not compensated.training
    with torch.no_grad():
        logits = kdci["student"](setup.test_images)
        assert torch.equal(backbone(setup.test_images), logits)
        assert torch.equal(compensated(setup.test_images), kdci["phi"](logits))
    assert agreement(compensated, setup) > 85
    assert "1.prototypes_ND" in compensated.state_dict()


def test_prototypes_may_be_features(setup: Setup) -> None:
    with torch.no_grad():
        features = setup.teacher[:-1](setup.substitutes)  # type: ignore[index]
    imports = LOOP.splitlines()[3] + "\n"
    phi = run(imports + FEATURES, setup, features=features)["phi"]
    assert phi.prototypes_ND.shape == (10, 64)
    assert phi(torch.randn(5, 10)).shape == (5, 10)


def test_batches_may_be_drawn_evenly_over_the_strata(setup: Setup, kdci: dict[str, Any]) -> None:
    names = run("import torch\n" + STRATA.replace("64", "20_000"), setup, z=kdci["z"])
    drawn = kdci["z"].assignments_M[names["rows"]].bincount() / 20_000
    assert bool(((drawn - 0.1).abs() < 0.015).all())
    assert float(kdci["z"].proportions_N.max()) > 0.2
    assert float(names["shares"].mean()) == pytest.approx(1.0, abs=1e-4)
    capped = names["shares"].clamp(max=5)
    assert float((capped / capped.mean()).max()) < 7


@pytest.mark.slow
def test_nothing_of_the_pipeline_is_loaded() -> None:
    """By the loop itself, from its imports to its last step."""
    script = f"""
import sys, torch
torch.manual_seed(0)
teacher, student = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10)) for _ in "ab")
substitutes = torch.rand(100, 1, 4, 4)
{LOOP}
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"kdci.deconfounding.compensation", "kdci.deconfounding.confounder"} <= loaded
    forbidden = re.compile(
        r"(kdci\.(methods|substitution|synthesis|data|store|training|models\.students"
        r"|config\.(?!catalog\b)\w+)"  # the catalog says what images a backbone takes
        r"|stages|pipelines|dvc|prefect|ray|mlflow|typer|pydantic)(\..*)?"
    )
    assert sorted(name for name in loaded if forbidden.fullmatch(name)) == []


def test_the_artifact_of_the_page_has_the_pipelines_layout() -> None:
    """What `load_student` does with it is tested where it is."""
    from kdci.store.layout import Cell, Layout

    (path,) = re.findall(r'load_student\("([^"]+)"\)', LOAD)
    cell = Cell("wrn-16-1", "wrn-10-1", "fast", "kdci", 0, 0)
    assert Path(path) == Layout(Path("."), "digits").student(cell)
