"""docs/your-teacher.md, followed to the letter: a checkpoint, no data, an exported student.

The teacher is torchvision's ResNet-18, trained here on crops of three photographs that come with
scikit-learn and matplotlib: which one a crop is from. The page's commands see its checkpoint alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.cbook as cbook
import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

from kdci.config.params_file import load_params
from kdci.models.pretrained import load_teacher
from kdci.store.artifacts import open_artifact
from tests.pipelines._projects import new_project, run_in
from tests.project_code import ROOT

PAGE = ROOT / "docs" / "your-teacher.md"
SIDE, CLASSES = 64, 3
MEAN, STD = (0.45, 0.44, 0.38), (0.27, 0.26, 0.28)
"""As the page says they are."""


def commands() -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def photographs() -> Iterator[Tensor]:
    """Yield three photographs, (3, H, W) in [0, 1]."""
    pictures = [*load_sample_images().images, plt_picture()]
    for picture in pictures:
        yield torch.tensor(np.array(picture)).permute(2, 0, 1).float() / 255


def plt_picture() -> np.ndarray:
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        from PIL import Image

        return np.asarray(Image.open(file).convert("RGB"))


def crops(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` crops of each photograph, and which one they are from."""
    random = np.random.default_rng(seed)
    images, labels = [], []
    for label, picture in enumerate(photographs()):
        for _ in range(count):
            top = random.integers(picture.shape[1] - SIDE)
            left = random.integers(picture.shape[2] - SIDE)
            images.append(picture[:, top : top + SIDE, left : left + SIDE])
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def trained_teacher() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=CLASSES)
    images, labels = crops(160, seed=1)
    epochs, batch_size = 5, 24
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    # To zero, so that the running statistics are of weights that have come to rest: what the
    # model knows in eval mode is then no matter of chance, or of the processor.
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.0, epochs * math.ceil(len(labels) / batch_size)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(batch_size):
            loss = F.cross_entropy(model(normalised(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def test_the_page_has_the_steps_that_it_promises() -> None:
    blocks = "\n".join(commands())
    for word in (
        "import-teacher",
        "preset own-teacher",
        "check --estimate",
        "run",
        "show",
        "export",
    ):
        assert f"kdci {word}" in blocks, word
    assert f"--mean {','.join(map(str, MEAN))} --std {','.join(map(str, STD))}" in blocks


@pytest.fixture
def one_core() -> Iterator[None]:
    """Leave the processes one core: their threads would be in the way of the tests beside this."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_checkpoint_becomes_an_exported_student(tmp_path: Path) -> None:
    root = new_project(tmp_path / "project")
    shutil.copy(ROOT / "params.yaml", root)
    teacher = trained_teacher()
    torch.save(teacher.state_dict(), root / "teacher.pth")

    said = "".join(run_in(root, "bash", "-euo", "pipefail", "-c", block) for block in commands())

    # The imported teacher is the one that was trained, normalisation included.
    images, labels = crops(20, seed=2)
    with torch.no_grad():
        wanted = teacher(normalised(images))
        artifact = open_artifact(root / "teachers" / "mine", kind="teacher")
        spec = load_params(root / "params.yaml").data.spec
        found = load_teacher(artifact, spec)(images).logits
    assert (wanted.argmax(1) == labels).float().mean() > 0.6  # it knows something
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)

    rows = json.loads((root / "report" / "results.json").read_text())
    assert {row["variant"] for row in rows} == {"vanilla", "kdci"}
    for row in rows:
        assert row["accuracy"] is None and row["teacher_accuracy"] is None
        assert row["dataset"] == "custom" and row["budget"] == 0.0002
    assert "agreement" in said

    exported = root / "exports" / "mine"
    student = torch.export.load(exported / "model.pt2").module()
    with torch.no_grad():
        logits = student(images[:7])
    assert logits.shape == (7, CLASSES) and logits.isfinite().all()
    card = (exported / "README.md").read_text()
    assert "apache-2.0" in card and "not published" in card
    assert (exported / "model.onnx").is_file() and (exported / "mlflow" / "MLmodel").is_file()
    assert json.loads((exported / "export.json").read_text())
