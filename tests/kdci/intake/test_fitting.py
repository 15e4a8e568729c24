"""Foreign state dicts fitted to backbones: the same answers as the network they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from kdci.config.catalog import DATASETS, DatasetSpec
from kdci.errors import IntegrityError, KdciError, UserError
from kdci.intake.fitting import Fitted, fit_state_dict
from kdci.models import build_backbone, load_state

CIFAR = DATASETS["cifar10"]
PHOTOS = replace(DATASETS["imagenet"], image_size=64, num_classes=7, stated_names=tuple("abcdefg"))


def trained(network: nn.Module) -> nn.Module:
    """Give BatchNorm layers weights and statistics of a trained net."""
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.8, 1.2, generator=generator)
            layer.num_batches_tracked += 5
    return network.eval()


def logits(fitted: Fitted, backbone: str, images: Tensor) -> Tensor:
    network = build_backbone(
        backbone,
        num_classes=fitted.spec.num_classes,
        channels=fitted.spec.channels,
        stem=fitted.stem,
        image_size=fitted.spec.image_size,
    )
    load_state(network, fitted.tensors)
    with torch.no_grad():
        answer: Tensor = network.eval()(images).logits
    return answer


def fit(state: dict[str, Tensor], backbone: str, spec: DatasetSpec = CIFAR, **more) -> Fitted:
    return fit_state_dict(state, "x.pt", backbone=backbone, spec=spec, **more)


@pytest.fixture(scope="module")
def wrn() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(trained(build_backbone("wrn-10-1", num_classes=10, channels=3)).state_dict())


def test_the_backbones_own_names(wrn) -> None:
    fitted = fit({f"module.{name}": value for name, value in wrn.items()}, "wrn-10-1")
    assert fitted.tensors.keys() == wrn.keys()
    assert all(torch.equal(fitted.tensors[name], value) for name, value in wrn.items())
    assert (fitted.prefixes, fitted.renamed, fitted.stem) == (("module.",), 0, "cifar")
    assert (fitted.num_batch_norm, fitted.untouched) == (7, 0)
    assert fitted.spec == CIFAR


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "build", "renamed"),
    [
        # One linear layer of 2, and 3 shortcuts of a convolution (1) and BatchNorm (5).
        ("resnet-18", torchvision.models.resnet18, 2 + 3 * 6),
        ("resnet-50", torchvision.models.resnet50, 0),
        ("mobilenetv2", torchvision.models.mobilenet_v2, 0),
        ("torchvision-shufflenet_v2_x0_5", torchvision.models.shufflenet_v2_x0_5, 0),
        ("torchvision-mnasnet0_5", torchvision.models.mnasnet0_5, 0),
    ],
)
def test_torchvisions_networks(
    backbone: str, build: Callable[..., nn.Module], renamed: int
) -> None:
    torch.manual_seed(0)
    network = trained(build(num_classes=7))
    images = torch.randn(2, 3, 64, 64)
    stem = "imagenet" if backbone == "mobilenetv2" else "auto"
    fitted = fit(dict(network.state_dict()), backbone, PHOTOS, stem=stem)
    assert fitted.renamed == renamed
    with torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(logits(fitted, backbone, images), expected, rtol=1e-4, atol=1e-4)


def test_timms_network_as_one_of_ours() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = trained(timm.create_model("resnet18", pretrained=False, num_classes=7))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
    for backbone in ("resnet-18", "timm-resnet18"):
        fitted = fit(dict(network.state_dict()), backbone, PHOTOS)
        found = logits(fitted, backbone, images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class TestStem:
    @pytest.mark.parametrize("stem", ["cifar", "imagenet"])
    def test_of_a_resnet_is_told_by_its_weights(self, stem: str) -> None:
        network = build_backbone("resnet-18", num_classes=10, channels=3, stem=stem)
        state = dict(network.state_dict())
        fitted = fit(state, "resnet-18")  # 32 px: the image size alone would say cifar
        assert (fitted.stem, fitted.stem_source) == (stem, "weights")
        assert fit(state, "resnet-18", stem=stem).stem_source == ""
        other = {"cifar": "imagenet", "imagenet": "cifar"}[stem]
        with pytest.raises(UserError, match=rf"with the {other} stem: conv1.weight is \(64, 3, "):
            fit(state, "resnet-18", stem=other)

    @pytest.mark.parametrize(("size", "stem"), [(32, "cifar"), (224, "imagenet")])
    def test_of_a_mobilenet_is_told_by_the_image_size(self, size: int, stem: str) -> None:
        network = build_backbone("mobilenetv2", num_classes=10, channels=3)
        spec = replace(CIFAR, image_size=size)
        fitted = fit(dict(network.state_dict()), "mobilenetv2", spec)
        assert (fitted.stem, fitted.stem_source) == (stem, "image size")


class TestClasses:
    def test_are_told_by_the_last_layer(self, wrn) -> None:
        guess = replace(CIFAR, num_classes=2, stated_names=())
        spec = fit(wrn, "wrn-10-1", guess).spec
        assert spec.num_classes == 10 and spec.class_names == tuple("0123456789")

    def test_others_than_expected(self, wrn) -> None:
        spec = DATASETS["cifar100"]
        with pytest.raises(UserError, match=r"has 10 classes \(fc.weight\), expected 100"):
            fit(wrn, "wrn-10-1", spec, num_classes=100)

    def test_channels(self, wrn) -> None:
        with pytest.raises(UserError, match=r"images of 3 channels \(conv1.weight\), expected 1"):
            fit(wrn, "wrn-10-1", DATASETS["digits"], num_classes=10)


class TestRefusals:
    """One line each, that says what was expected and found."""

    def refused(self, kind: type[KdciError], state: dict[str, Tensor], backbone: str) -> str:
        with pytest.raises(KdciError) as caught:
            fit(state, backbone)
        assert type(caught.value) is kind
        (line,) = caught.value.lines()
        assert len(line) < 500
        return line

    def test_another_depth(self, wrn) -> None:
        line = self.refused(UserError, wrn, "wrn-16-1")
        assert "not those of wrn-16-1: " in line and "missing (block1.layer.1." in line

    def test_another_width(self, wrn) -> None:
        line = self.refused(UserError, wrn, "wrn-16-2")
        assert "missing" in line and "and" in line

    def test_another_family(self, wrn) -> None:
        line = self.refused(UserError, wrn, "vgg-11")
        assert "missing" in line and "unknown (" in line and "more)" in line

    def test_shapes(self, wrn) -> None:
        line = self.refused(UserError, wrn | {"bn1.weight": torch.ones(3)}, "wrn-10-1")
        assert "bn1.weight is (3,), expected (64,)" in line

    def test_types(self, wrn) -> None:
        quantised = wrn | {"fc.weight": wrn["fc.weight"].to(torch.int8)}
        line = self.refused(UserError, quantised, "wrn-10-1")
        assert "fc.weight is int8, expected float32" in line

    def test_an_unknown_backbone_of_another_library(self, wrn) -> None:
        self.refused(UserError, wrn, "torchvision-nosuchnet")


class TestBatchNorm:
    def test_without_statistics(self, wrn) -> None:
        state = {name: value for name, value in wrn.items() if "running" not in name}
        with pytest.raises(UserError, match="no BatchNorm statistics: .*running_mean.*deepinv"):
            fit(state, "wrn-10-1")

    def test_folded_into_convolutions(self) -> None:
        network = trained(build_backbone("resnet-18", num_classes=10, channels=3))
        norms = {n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
        state = {
            name: value
            for name, value in network.state_dict().items()
            if name.rpartition(".")[0] not in norms
        }
        state["conv1.bias"] = torch.zeros(64)
        with pytest.raises(UserError, match=r"no BatchNorm layer, resnet-18 has 20.*fused"):
            fit(state, "resnet-18")

    def test_counters_may_be_missing_or_of_another_type(self, wrn) -> None:
        state = {name: value for name, value in wrn.items() if "batches" not in name}
        state["bn1.num_batches_tracked"] = torch.tensor(3.0)
        fitted = fit(state, "wrn-10-1")
        counter = fitted.tensors["bn1.num_batches_tracked"]
        assert counter.dtype == torch.int64 and counter == 3
        assert fitted.tensors["block1.layer.0.bn1.num_batches_tracked"] == 0
        images = torch.randn(2, 3, 32, 32)
        expected = logits(fit(wrn, "wrn-10-1"), "wrn-10-1", images)
        assert torch.equal(logits(fitted, "wrn-10-1", images), expected)

    def test_statistics_of_no_training_are_counted(self) -> None:
        network = build_backbone("wrn-10-1", num_classes=10, channels=3)
        assert fit(dict(network.state_dict()), "wrn-10-1").untouched == 7

    def test_a_negative_variance(self, wrn) -> None:
        state = wrn | {"bn1.running_var": wrn["bn1.running_var"] - 9}
        with pytest.raises(IntegrityError, match=r"bn1.running_var is negative"):
            fit(state, "wrn-10-1")

    def test_a_network_without_any(self) -> None:
        network = torchvision.models.squeezenet1_1(num_classes=10)
        try:
            fitted = fit(dict(network.state_dict()), "torchvision-squeezenet1_1", PHOTOS)
        except UserError as error:
            assert "linear layer" in str(error)  # it ends in a convolution
        else:
            assert fitted.num_batch_norm == 0


class TestAuxiliaryHeads:
    """GoogLeNet and Inception as torchvision publishes them."""

    @pytest.mark.parametrize(
        ("name", "size", "left_out"),
        [
            ("googlenet", 64, 2 * 10),  # a head: a convolution, BatchNorm, two linear layers
            pytest.param("inception_v3", 80, 14, marks=pytest.mark.slow),
        ],
    )
    def test_are_left_out_and_the_transform_is_a_normalisation(
        self, name: str, size: int, left_out: int
    ) -> None:
        torch.manual_seed(0)
        options = {"aux_logits": True, "transform_input": True, "init_weights": False}
        theirs = trained(torchvision.models.get_model(name, weights=None, num_classes=7, **options))
        spec = replace(PHOTOS, image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
        wrapped = {f"module.{key}": value for key, value in theirs.state_dict().items()}
        fitted = fit(wrapped, f"torchvision-{name}", spec)
        assert (fitted.left_out, fitted.renamed, fitted.prefixes) == (left_out, 0, ("module.",))
        pixels = torch.rand(2, 3, size, size)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PHOTOS.mean, PHOTOS.std))
        with torch.no_grad():
            expected = theirs((pixels - mean) / std)
        found = logits(fitted, f"torchvision-{name}", (pixels - 0.5) / 0.5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    def test_of_another_network_are_unknown_names(self, wrn) -> None:
        with pytest.raises(UserError, match=r"1 unknown \(aux1.weight\)"):
            fit(wrn | {"aux1.weight": torch.zeros(2)}, "wrn-10-1")
