"""Wide ResNets: names, shortcuts, initialisation, a naive forward, a public checkpoint."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.models import PixelModel
from kdci.models.backbones.wide_resnet import WideResNet
from tests.project_code import ROOT

DATA = Path(os.environ.get("KDCI_TEST_DATA") or ROOT.parent / "shared/data")
CHECKPOINT = DATA.parent / "teachers/cifar10_wrn16_2.pth"
TEST_IMAGES = DATA / "cifar10/plain_text/test-00000-of-00001.parquet"


def scramble(module: nn.Module) -> None:
    """Give BatchNorm layers weights and statistics of a trained net."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)


def naive_forward(
    state: dict[str, Tensor], images: Tensor, num_blocks: int
) -> tuple[Tensor, Tensor]:
    """The network written out over the weights' names."""

    def activated(maps: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / (var + 1e-5).sqrt()
        shifted = (maps - mean[:, None, None]) * scale[:, None, None]
        return (shifted + state[f"{name}.bias"][:, None, None]).clamp(min=0)

    maps = F.conv2d(images, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(num_blocks):
            name = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            first = activated(maps, f"{name}.bn1")
            hidden = F.conv2d(first, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            hidden = activated(hidden, f"{name}.bn2")
            hidden = F.conv2d(hidden, state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.convShortcut.weight")
            maps = hidden + (maps if shortcut is None else F.conv2d(first, shortcut, stride=stride))
    features = activated(maps, "bn1").flatten(2).mean(dim=2)
    return F.linear(features, state["fc.weight"], state["fc.bias"]), features


@pytest.mark.parametrize(("depth", "widen_factor"), [(10, 1), (16, 2)])
def test_equals_naive_forward(depth: int, widen_factor: int) -> None:
    torch.manual_seed(0)
    net = WideResNet(depth, widen_factor, num_classes=10, channels=3).eval()
    scramble(net)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        logits, features = naive_forward(net.state_dict(), images, (depth - 4) // 6)
        prediction = net(images)
    torch.testing.assert_close(prediction.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction.features, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("widen_factor", "shortcuts"),
    [
        (1, ["block2.layer.0", "block3.layer.0"]),
        (2, ["block1.layer.0", "block2.layer.0", "block3.layer.0"]),
    ],
)
def test_shortcut_convolution_only_where_widths_differ(
    widen_factor: int, shortcuts: list[str]
) -> None:
    net = WideResNet(16, widen_factor, num_classes=10, channels=3)
    names = [key for key in net.state_dict() if "convShortcut" in key]
    assert names == [f"{shortcut}.convShortcut.weight" for shortcut in shortcuts]


def test_initialisation_follows_the_fan_out() -> None:
    torch.manual_seed(0)
    net = WideResNet(16, 2, num_classes=10, channels=3)
    weight = net.get_parameter("block3.layer.0.conv2.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    shortcut = net.get_parameter("block3.layer.0.convShortcut.weight")
    assert shortcut.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert not net.fc.bias.any()


@pytest.mark.slow
def test_public_checkpoint_loads_and_scores_what_its_readme_says() -> None:
    for path in (CHECKPOINT, TEST_IMAGES):
        if not path.exists():
            pytest.skip(f"needs {path.name}; set KDCI_TEST_DATA, teachers/ lies beside it")
    net = WideResNet(16, 2, num_classes=10, channels=3)
    net.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["state_dict"], strict=True)
    spec = DATASETS["cifar10"]
    model = PixelModel(net, mean=spec.mean, std=spec.std).eval()
    correct = 0
    with torch.no_grad():
        for rows in pq.ParquetFile(TEST_IMAGES).iter_batches(500):
            columns = rows.to_pydict()
            decoded = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in columns["img"]]
            images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
            predicted = model(images).logits.argmax(dim=1)
            correct += int((predicted == torch.tensor(columns["label"])).sum())
    # Of 10,000 lossless images; a few may tip over with other rounding.
    assert correct == pytest.approx(8_919, abs=5)
