from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdci import Compensation, build_dictionary, load_student
from kdci.config.catalog import DATASETS
from kdci.errors import IntegrityError, UserError
from kdci.models import PixelModel
from kdci.models.pretrained import MODEL_FILE, build_network
from kdci.models.students import COMPENSATION_FILE, snapshot_of, student_of
from kdci.store.artifacts import Artifact, new_artifact, open_artifact
from kdci.substitution.base import SoftLabelCriterion
from kdci.training.distillation import Distiller
from kdci.training.losses import soft_label_kl

SPEC = DATASETS["digits"]
STUDENT = "wrn-10-1"
SNAPSHOT = "snapshot-000000001.safetensors"


class NoSink:
    """Lets the numbers go."""

    def log(self, step: int, **values: float) -> None:
        """Do nothing."""


class RandomImages:
    """A source of noise."""

    refresh_period: int | None = None

    bank: Any = range(1)

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)

    def refresh(self, student: PixelModel) -> dict[str, float]:
        return {}

    def batch(self, size: int) -> Tensor:
        return torch.rand(size, 1, 16, 16, generator=self.random)

    def criterion(self) -> SoftLabelCriterion:
        return SoftLabelCriterion(4.0)


def make_images() -> Tensor:
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def make_compensation(**changes: Any) -> Compensation:
    predictions = 5 * torch.randn(200, 10, generator=torch.Generator().manual_seed(2))
    found = build_dictionary(predictions, num_prototypes=4, seed=0)
    return Compensation(found.prototypes_ND, found.proportions_N, num_classes=10, **changes)


def weights_of(distiller: Distiller) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in distiller.weights().items()}


def write_student(
    folder: Path, compensation: Compensation | None, **replaced: dict[str, Tensor]
) -> tuple[Distiller, nn.Module]:
    """Distil two steps; leave the artifact as the stage does, with a snapshot of the first.

    Returns:
        The distiller, and the student as it was at the snapshot.
    """
    distiller = Distiller(
        teacher=build_network(STUDENT, SPEC, seed=0).eval(),
        student=build_network(STUDENT, SPEC, seed=1),
        source=RandomImages(),  # type: ignore[arg-type]
        compensation=compensation,
        sink=NoSink(),
        num_epochs=1,
        steps_per_epoch=2,
        batch_size=4,
        learning_rate=0.1,
    )
    steps = distiller.run()
    next(steps)
    snapshot = weights_of(distiller)
    early = build_network(STUDENT, SPEC, seed=0)
    early.load_state_dict(distiller.student.state_dict())
    list(steps)
    facts = {
        "dataset": "digits",
        "student": STUDENT,
        "num_classes": 10,
        "channels": 1,
        "image_size": 16,
        "mean": list(SPEC.mean),
        "std": list(SPEC.std),
        "snapshots": [[1, SNAPSHOT]],
        "compensation": compensation.shape() if compensation is not None else None,
    }
    with new_artifact(folder, kind="student", card={"facts": facts}) as draft:
        files = {MODEL_FILE: distiller.student.state_dict(), SNAPSHOT: snapshot}
        if compensation is not None:
            files[COMPENSATION_FILE] = compensation.state_dict()
        for name, tensors in {**files, **replaced}.items():
            draft.save_tensors(name, tensors)
    return distiller, early


def artifact(folder: Path) -> Artifact:
    return open_artifact(folder, kind="student")


class TestLoadStudent:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"fusion": "residual", "scale": "N", "hidden_dim": 7},
            {"fusion": "linear", "proportions": "centred", "prototypes": "random"},
            {"weights": "random"},
        ],
    )
    def test_answers_as_the_trained_modules(self, tmp_path: Path, options: dict[str, Any]) -> None:
        distiller, _ = write_student(tmp_path / "s", make_compensation(**options))
        trained, phi = distiller.student.eval(), distiller.compensation
        assert phi is not None
        raw = trained(make_images()).logits
        backbone = load_student(tmp_path / "s")
        compensated = load_student(str(tmp_path / "s"), deploy="compensated")
        assert torch.equal(backbone(make_images()), raw)
        assert torch.equal(compensated(make_images()), phi.eval()(raw))
        assert not torch.equal(compensated(make_images()), raw)
        assert torch.equal(backbone.compensated(raw), phi(raw))
        assert not any(module.training for module in compensated.modules())

    @pytest.mark.parametrize("deploy", ["backbone", "compensated"])
    def test_a_vanilla_student_has_one_answer(self, tmp_path: Path, deploy: str) -> None:
        distiller, _ = write_student(tmp_path / "s", None)
        expected = distiller.student.eval()(make_images()).logits
        student = load_student(tmp_path / "s", deploy=deploy)
        assert student.compensation is None
        assert torch.equal(student(make_images()), expected)
        assert torch.equal(student.compensated(expected), expected)

    def test_needs_no_global_stream(self, tmp_path: Path) -> None:
        write_student(tmp_path / "s", make_compensation())
        before = torch.get_rng_state()
        load_student(tmp_path / "s")
        assert torch.equal(torch.get_rng_state(), before)

    def test_misuse_and_wrong_folders(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="unknown deploy 'both'"):
            load_student(tmp_path, deploy="both")
        with pytest.raises(UserError, match="there is no student here"):
            load_student(tmp_path / "nowhere")
        with new_artifact(tmp_path / "t", kind="teacher", card={"facts": {}}):
            pass
        with pytest.raises(UserError, match="is a teacher, not a student"):
            load_student(tmp_path / "t")

    @pytest.mark.parametrize("name", [MODEL_FILE, COMPENSATION_FILE])
    def test_a_damaged_file_loads_nothing(self, tmp_path: Path, damage: Any, name: str) -> None:
        write_student(tmp_path / "s", make_compensation())
        damage.apply(tmp_path / "s" / name)
        with pytest.raises(IntegrityError) as caught:
            load_student(tmp_path / "s")
        assert caught.value.subject == str(tmp_path / "s" / name)
        assert not damage.canary.exists()

    @pytest.mark.parametrize("name", [MODEL_FILE, COMPENSATION_FILE])
    def test_tensors_of_another_network(self, tmp_path: Path, name: str) -> None:
        write_student(tmp_path / "s", make_compensation(), **{name: {"x": torch.zeros(1)}})
        with pytest.raises(IntegrityError) as caught:
            load_student(tmp_path / "s")
        assert caught.value.subject == str(tmp_path / "s" / name)


@pytest.mark.parametrize(
    ("student", "stem"),
    [("resnet-18", "imagenet"), ("mobilenetv2", "imagenet"), ("torchvision-resnet18", "cifar")],
)
def test_other_backbones_and_stems(tmp_path: Path, student: str, stem: str) -> None:
    network = build_network(student, SPEC, seed=0, stem=stem)
    network(make_images())
    facts = {
        "dataset": "digits",
        "student": student,
        "stem": stem,
        "num_classes": 10,
        "channels": 1,
        "image_size": 16,
        "mean": list(SPEC.mean),
        "std": list(SPEC.std),
        "compensation": None,
    }
    with new_artifact(tmp_path / "s", kind="student", card={"facts": facts}) as draft:
        draft.save_tensors(MODEL_FILE, network.state_dict())
    expected = network.eval()(make_images()).logits
    assert torch.equal(load_student(tmp_path / "s")(make_images()), expected)


class TestSnapshots:
    @pytest.mark.parametrize("with_compensation", [False, True])
    def test_the_student_as_it_was(self, tmp_path: Path, with_compensation: bool) -> None:
        compensation = make_compensation() if with_compensation else None
        distiller, early = write_student(tmp_path / "s", compensation)
        snapshot = snapshot_of(artifact(tmp_path / "s"), SNAPSHOT)
        raw = early.eval()(make_images()).logits
        assert torch.equal(snapshot(make_images()), raw)
        assert not torch.equal(student_of(artifact(tmp_path / "s"))(make_images()), raw)
        if with_compensation:
            assert distiller.compensation is not None
            trained = distiller.compensation.get_parameter("w_q.weight")
            assert snapshot.compensation is not None
            assert not torch.equal(snapshot.compensation.get_parameter("w_q.weight"), trained)

    def test_the_last_snapshot_is_the_student(self, tmp_path: Path) -> None:
        distiller, _ = write_student(tmp_path / "a", make_compensation())
        write_student(tmp_path / "b", make_compensation(), **{SNAPSHOT: weights_of(distiller)})
        found = artifact(tmp_path / "b")
        last, student = snapshot_of(found, SNAPSHOT), student_of(found)
        last.deploy = student.deploy = "compensated"
        assert torch.equal(last(make_images()), student(make_images()))

    @pytest.mark.parametrize("part", ["student", "compensation"])
    def test_tensors_of_another_network(self, tmp_path: Path, part: str) -> None:
        distiller, _ = write_student(tmp_path / "a", make_compensation())
        tensors = {k: v for k, v in weights_of(distiller).items() if not k.startswith(part)}
        write_student(tmp_path / "b", make_compensation(), **{SNAPSHOT: tensors})
        with pytest.raises(IntegrityError) as caught:
            snapshot_of(artifact(tmp_path / "b"), SNAPSHOT)
        assert caught.value.subject == str(tmp_path / "b" / SNAPSHOT)


class TestPlugIn:
    """The public names in a user's own loop: plain modules, no part of this project else."""

    def test_a_plain_loop_with_compensation_learns(self) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5))
        student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        pool = torch.randn(256, 8, generator=generator)
        with torch.no_grad():
            teacher.get_parameter("2.weight").mul_(5)
            predictions = teacher(pool)

        dictionary = build_dictionary(predictions, num_prototypes=5, seed=0)
        compensate = Compensation(dictionary.prototypes_ND, dictionary.proportions_N, num_classes=5)
        optimizer = torch.optim.SGD([*student.parameters(), *compensate.parameters()], lr=0.2)
        before = compensate.get_parameter("w_q.weight").detach().clone()
        losses = []
        for _ in range(5):
            loss = F.kl_div(
                compensate(student(pool)).log_softmax(1),
                predictions.log_softmax(1),
                reduction="batchmean",
                log_target=True,
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
        assert not torch.equal(compensate.get_parameter("w_q.weight"), before)
        with torch.no_grad():
            assert float(soft_label_kl(student(pool), predictions, 1.0)) < losses[0]

    def test_two_modules_from_one_dictionary_do_not_share_state(self) -> None:
        """Loading one student's weights must not change another's dictionary, or the caller's."""
        predictions = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        found = build_dictionary(predictions, num_prototypes=3, seed=0)
        other = build_dictionary(predictions[:40], num_prototypes=3, seed=0)
        kept = found.prototypes_ND.clone(), found.proportions_N.clone()
        one, two = (
            Compensation(d.prototypes_ND, d.proportions_N, num_classes=5) for d in (found, other)
        )
        one.load_state_dict(two.state_dict())
        assert torch.equal(found.prototypes_ND, kept[0])
        assert torch.equal(found.proportions_N, kept[1])
