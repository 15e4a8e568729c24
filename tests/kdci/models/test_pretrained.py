from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DATASETS, STEMS
from kdci.errors import IntegrityError, NumericError, UserError
from kdci.models.pretrained import MODEL_FILE, build_network, load_teacher, load_weights, stem_of
from kdci.store.artifacts import Artifact, new_artifact, open_artifact

SPEC = DATASETS["digits"]
BACKBONE = "wrn-10-1"
FACTS = {
    "backbone": BACKBONE,
    "num_classes": 10,
    "channels": 1,
    "image_size": 16,
    "mean": list(SPEC.mean),
    "std": list(SPEC.std),
}
Change = Callable[[dict[str, Tensor]], None]


def make_images() -> Tensor:
    return torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def write_teacher(folder: Path, tensors: dict[str, Tensor], **facts: Any) -> Artifact:
    with new_artifact(folder, kind="teacher", card={"facts": {**FACTS, **facts}}) as draft:
        draft.save_tensors(MODEL_FILE, tensors)
    return open_artifact(folder, kind="teacher")


def trained_model() -> nn.Module:
    """Return a network whose running statistics are not those of a fresh one."""
    model = build_network(BACKBONE, SPEC, seed=3)
    model(make_images())
    return model


class TestBuildNetwork:
    def test_weights_depend_on_the_seed_alone(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        one = build_network(BACKBONE, SPEC, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        same, other = (build_network(BACKBONE, SPEC, seed=s).state_dict() for s in (5, 6))
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, same[name])
        weight = one.get_parameter("backbone.conv1.weight")
        assert not torch.equal(weight, other["backbone.conv1.weight"])

    def test_takes_the_datasets_shape_and_normalisation(self) -> None:
        model = build_network(BACKBONE, DATASETS["cifar10"], seed=0, device=torch.device("cpu"))
        assert model(torch.rand(2, 3, 32, 32)).logits.shape == (2, 10)
        assert model.mean.flatten().tolist() == pytest.approx(DATASETS["cifar10"].mean)

    def test_the_stem_is_passed_on(self) -> None:
        spec = DATASETS["cifar10"]
        small, large = (
            build_network("resnet-18", spec, seed=0, stem=s).get_parameter("backbone.conv1.weight")
            for s in STEMS
        )
        assert small.shape == (64, 3, 3, 3) and large.shape == (64, 3, 7, 7)
        default = build_network("resnet-18", spec, seed=0)
        assert torch.equal(default.get_parameter("backbone.conv1.weight"), small)

    def test_a_classifier_of_another_library(self) -> None:
        before = torch.get_rng_state()
        name = "torchvision-shufflenet_v2_x0_5"
        one, same, other = (build_network(name, SPEC, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        logits = [net.eval()(make_images()).logits for net in (one, same, other)]
        assert logits[0].shape == (5, 10)
        assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
        with pytest.raises(UserError, match="did you mean torchvision-resnet18"):
            build_network("torchvision-resnet17", SPEC, seed=0)

    def test_precision_is_passed_on(self) -> None:
        model = build_network(BACKBONE, SPEC, seed=0, autocast_dtype=torch.bfloat16)
        assert model.autocast_dtype is torch.bfloat16


class TestLoadTeacher:
    def test_answers_as_the_trained_one_frozen(self, tmp_path: Path) -> None:
        trained = trained_model().eval()
        teacher = load_teacher(write_teacher(tmp_path / "t", trained.state_dict()), SPEC)
        assert torch.equal(teacher(make_images()).logits, trained(make_images()).logits)
        assert not any(module.training for module in teacher.modules())
        assert not any(weight.requires_grad for weight in teacher.parameters())

    def test_keeps_the_normalisation_it_was_trained_with(self, tmp_path: Path) -> None:
        tensors = trained_model().state_dict()
        teacher = load_teacher(write_teacher(tmp_path / "t", tensors, mean=[0.1], std=[0.7]), SPEC)
        assert teacher.mean.item() == pytest.approx(0.1)
        assert teacher.std.item() == pytest.approx(0.7)

    @pytest.mark.parametrize("stem", [None, *STEMS])
    def test_has_the_stem_of_its_card(self, tmp_path: Path, stem: str | None) -> None:
        """A card that does not tell is of the time of the CIFAR stem."""
        trained = build_network("resnet-18", SPEC, seed=3, stem=stem or "cifar").eval()
        facts = {"backbone": "resnet-18"} | ({"stem": stem} if stem else {})
        artifact = write_teacher(tmp_path / "t", trained.state_dict(), **facts)
        teacher = load_teacher(artifact, SPEC)
        assert torch.equal(teacher(make_images()).logits, trained(make_images()).logits)
        assert stem_of(artifact) == (stem or "cifar")

    def test_another_stem_than_its_cards(self, tmp_path: Path) -> None:
        tensors = build_network("resnet-18", SPEC, seed=3).state_dict()
        facts = {"backbone": "resnet-18", "stem": "imagenet"}
        with pytest.raises(IntegrityError, match=r"size mismatch for backbone\.conv1\.weight"):
            load_teacher(write_teacher(tmp_path / "t", tensors, **facts), SPEC)

    @pytest.mark.parametrize(
        ("fact", "value"), [("num_classes", 100), ("channels", 3), ("image_size", 32)]
    )
    def test_a_teacher_of_another_dataset_is_a_user_error(
        self, tmp_path: Path, fact: str, value: int
    ) -> None:
        artifact = write_teacher(tmp_path / "t", trained_model().state_dict(), **{fact: value})
        with pytest.raises(UserError, match=f"has {value} {fact}, digits has") as caught:
            load_teacher(artifact, SPEC)
        assert caught.value.exit_code == 2 and str(tmp_path / "t") in str(caught.value)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("name", ["backbone.fc.bias", "backbone.bn1.running_var"])
    def test_a_weight_that_is_not_finite(self, tmp_path: Path, name: str, value: float) -> None:
        tensors = dict(trained_model().state_dict())
        tensors[name] = torch.full_like(tensors[name], value)
        with pytest.raises(NumericError, match=f"{name} is not finite"):
            load_teacher(write_teacher(tmp_path / "t", tensors), SPEC)

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda t: t.pop("backbone.fc.bias"), r"Missing key.*backbone\.fc\.bias"),
            (lambda t: t.update({"backbone.more": torch.zeros(2)}), r"Unexpected.*backbone\.more"),
            (
                lambda t: t.update({"backbone.fc.weight": torch.zeros(10, 7)}),
                r"size mismatch for backbone\.fc\.weight",
            ),
            (lambda t: t.clear(), "Missing key"),
        ],
    )
    def test_tensors_of_another_network(self, tmp_path: Path, change: Change, what: str) -> None:
        """R5: the hashes fit, the network does not."""
        tensors = dict(trained_model().state_dict())
        change(tensors)
        with pytest.raises(IntegrityError, match=what) as caught:
            load_teacher(write_teacher(tmp_path / "t", tensors), SPEC)
        assert caught.value.exit_code == 3
        assert caught.value.subject == str(tmp_path / "t" / MODEL_FILE)
        assert len(caught.value.lines()) == 1

    def test_a_file_that_is_not_on_the_card(self, tmp_path: Path) -> None:
        artifact = write_teacher(tmp_path / "t", trained_model().state_dict())
        with pytest.raises(IntegrityError, match=r"holds no other\.safetensors"):
            load_weights(trained_model(), artifact, "other.safetensors")
