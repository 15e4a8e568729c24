"""Classifiers of torchvision and timm: what they answer, and what is refused."""

from __future__ import annotations

import importlib
import socket
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from kdci.config.catalog import is_backbone
from kdci.errors import UserError
from kdci.models import Prediction, build_backbone
from kdci.models.backbones.foreign import build_foreign

CASES = [
    ("shufflenet_v2_x0_5", 1024, {}),
    ("mnasnet0_5", 1280, {}),
    ("mobilenet_v3_small", 1024, {}),
    ("efficientnet_b0", 1280, {}),
    ("googlenet", 1024, {"aux_logits": False, "init_weights": True}),
    ("vit_b_32", 768, {"image_size": 64}),
]


def images(channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def refusal(name: str, **changes: Any) -> str:
    options = {"num_classes": 4, "channels": 3, "image_size": 64, **changes}
    with pytest.raises(UserError) as caught:
        build_foreign(name, **options)
    assert caught.value.exit_code == 2 and len(caught.value.lines()) == 1
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dimension", "options"), CASES)
def test_torchvisions_network_and_what_its_last_layer_reads(
    name: str, dimension: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=4, **options).eval()
    torch.manual_seed(0)
    ours = build_backbone(f"torchvision-{name}", num_classes=4, channels=3, image_size=64).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    seen: list[Tensor] = []
    *_, last = (layer for layer in theirs.modules() if isinstance(layer, nn.Linear))
    last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        prediction, expected = ours(images()), theirs(images())
    assert isinstance(prediction, Prediction)
    assert torch.equal(prediction.logits, expected)
    assert torch.equal(prediction.features, seen[0]) and seen[0].shape == (2, dimension)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_arguments: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    build_foreign("torchvision-shufflenet_v2_x0_5", num_classes=4, channels=3, image_size=32)


def test_other_channels_come_in_at_the_first_convolution() -> None:
    options: dict[str, Any] = {"num_classes": 4, "image_size": 64}
    torch.manual_seed(0)
    grey = build_foreign("torchvision-mobilenet_v3_small", channels=1, **options).eval()
    torch.manual_seed(0)
    coloured = build_foreign("torchvision-mobilenet_v3_small", channels=3, **options).eval()
    assert grey(images(1)).logits.shape == (2, 4)
    shapes = {n: p.shape for n, p in coloured.named_parameters()}
    others = {n: p.shape for n, p in grey.named_parameters() if p.shape != shapes[n]}
    assert others == {"features.0.0.weight": (16, 1, 3, 3)}
    one, three = (net.get_parameter("features.0.0.weight").detach() for net in (grey, coloured))
    assert float(one.std()) == pytest.approx(float(three.std()), rel=0.25)


def test_training_leaves_nothing_to_chance() -> None:
    net = build_foreign("torchvision-efficientnet_b0", num_classes=4, channels=3, image_size=64)
    before = torch.get_rng_state()
    assert net.training
    assert torch.equal(net(images()).logits, net(images()).logits)
    assert torch.equal(torch.get_rng_state(), before)


def test_trying_it_changes_no_state() -> None:
    net = build_foreign("torchvision-shufflenet_v2_x0_5", num_classes=4, channels=3, image_size=32)
    for name, buffer in net.named_buffers():
        initial = 1.0 if name.endswith("running_var") else 0.0
        assert bool((buffer == initial).all()), name
    assert not any(parameter.is_meta for parameter in net.parameters())


def test_refusals() -> None:
    assert "did you mean torchvision-resnet18?" in refusal("torchvision-resnet19")
    assert "no classifier of this name" in refusal("torchvision-zzz")
    assert "does not end in one linear layer" in refusal("torchvision-squeezenet1_0")
    assert "is built for one image size" in refusal("torchvision-vit_b_16", image_size=None)
    assert "images of 40 px" in refusal("torchvision-vit_b_16", image_size=40)
    assert "images of 32 px" in refusal("torchvision-alexnet", image_size=32)
    # A detector is no classifier.
    assert "no classifier of this name" in refusal("torchvision-fasterrcnn_resnet50_fpn")


def test_a_last_layer_that_is_not_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.fc = nn.Linear(8, 4)

        def forward(self, maps: Tensor) -> Tensor:
            scores: Tensor = self.fc(self.conv(maps).mean((2, 3)))
            return scores - scores.mean(1, keepdim=True)

    monkeypatch.setattr(torchvision.models, "get_model", lambda *_names, **_options: Centred())
    assert "its last linear layer is not its answer" in refusal("torchvision-resnet18")


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    said = refusal("timm-resnet18")
    assert said == "timm-resnet18: needs timm, which is not installed (pip install 'kdci[timm]')"


class TestTimm:
    """With the extra ``timm``."""

    @pytest.fixture(autouse=True)
    def _timm(self) -> None:
        pytest.importorskip("timm")

    @pytest.mark.parametrize(
        ("name", "channels"), [("resnet10t", 3), ("test_vit", 3), ("mobilenetv3_small_050", 1)]
    )
    def test_its_network_and_what_its_last_layer_reads(self, name: str, channels: int) -> None:
        timm = importlib.import_module("timm")
        size = {"img_size": 64} if "vit" in name else {}
        torch.manual_seed(0)
        theirs = timm.create_model(name, num_classes=4, in_chans=channels, **size).eval()
        torch.manual_seed(0)
        ours = build_backbone(f"timm-{name}", num_classes=4, channels=channels, image_size=64)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        pixels = images(channels)
        with torch.no_grad():
            prediction, expected = ours.eval()(pixels), theirs(pixels)
            features = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
        assert isinstance(prediction, Prediction)
        torch.testing.assert_close(prediction.logits, expected)
        torch.testing.assert_close(prediction.features, features)

    def test_refusals(self) -> None:
        assert "did you mean timm-resnet18?" in refusal("timm-resnet_18")
        assert "does not end in one linear layer" in refusal("timm-deit_tiny_distilled_patch16_224")
        assert "is built for one image size" in refusal("timm-test_vit", image_size=None)
        assert "its last linear layer is not its answer" in refusal("timm-volo_d1_224")

    def test_its_names_can_stand_in_params(self) -> None:
        names = importlib.import_module("timm").list_models()
        assert len(names) > 500 and all(is_backbone(f"timm-{name}") for name in names)


def test_torchvisions_names_can_stand_in_params() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    assert all(is_backbone(f"torchvision-{name}") for name in names)
