"""Networks and a context small enough for methods to be followed step by step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.models import PixelModel, Prediction
from kdci.substitution.base import SourceContext

PLAIN = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 0, False, ("a", "b", "c"))
AUGMENTED = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 1, True, ("a", "b", "c"))


class TinyNet(nn.Module):
    """Two convolutions with batch norms, and a head that is sure of itself."""

    def __init__(self, seed: int, *, channels: int = 1, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(channels, 4, 3, padding=padding)
        self.first_norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=padding)
        self.second_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Prediction:
        maps = torch.relu(self.first_norm(self.first(images)))
        features = torch.relu(self.second_norm(self.second(maps))).mean((2, 3))
        return Prediction(3 * self.head(features), features)


def seen_noise(net: TinyNet, spec: DatasetSpec) -> PixelModel:
    """Return a network whose statistics are those of one batch of noise, in eval mode."""
    model = PixelModel(net, mean=spec.mean, std=spec.std)
    random = torch.Generator().manual_seed(0)
    model(torch.rand(64, spec.channels, 8, 8, generator=random))
    return model.eval()


def make_teacher() -> PixelModel:
    return seen_noise(TinyNet(1), PLAIN)


def make_student() -> PixelModel:
    """Return the teacher with a flatter head: it agrees on classes, with less confidence."""
    student = make_teacher()
    with torch.no_grad():
        student.backbone.head.weight.mul_(0.3)
        student.backbone.head.bias.mul_(0.3)
    return student.train()


def make_context(folder: Path, spec: DatasetSpec, teacher: PixelModel) -> SourceContext:
    folder.mkdir(exist_ok=True)
    return SourceContext(
        teacher=teacher,
        spec=spec,
        bank=ImageBank(folder / "tail.bin", shape=(spec.channels, 8, 8)),
        seed=5,
        teacher_accuracy=0.9,
        open_world=lambda: torch.empty(0),
    )
