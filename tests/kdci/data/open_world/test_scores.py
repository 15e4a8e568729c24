from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from kdci.data.bank.image_bank import ImageBank
from kdci.data.open_world import scores as open_world_scores
from kdci.data.open_world.scores import OpenWorldScores
from kdci.errors import NumericError, UserError
from kdci.models import PixelModel, Prediction
from tests.kdci._tensor_pool import TensorPool

VALUES = [5, 9, 1, 9, 5, 0, 9, 1, 0, 5, 7, 7]


class PixelTeacher(nn.Module):
    """Its one logit is the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.chunks: list[int] = []

    def forward(self, images: Tensor) -> Prediction:
        self.chunks.append(len(images))
        features = images.flatten(1)
        return Prediction(self.scale * features[:, :1], features)


def make_pool() -> TensorPool:
    """Return images whose first pixel is their value and whose second is their number."""
    pool = torch.zeros(len(VALUES), 1, 2, 2, dtype=torch.uint8)
    pool[:, 0, 0, 0] = torch.tensor(VALUES)
    pool[:, 0, 0, 1] = torch.arange(len(VALUES))
    return TensorPool(pool)


def make_teacher() -> PixelModel:
    return PixelModel(PixelTeacher(), mean=(0.0,), std=(1 / 255,)).eval()


def make_bank(folder: Path) -> ImageBank:
    return ImageBank(folder / "tail.bin", shape=(1, 2, 2))


def make_scores(
    keep: Literal["lowest", "highest"] = "highest", *, num_selected: int = 5, batch_size: int = 1
) -> OpenWorldScores:
    return OpenWorldScores(
        "some",
        name="value",
        score=lambda logits: logits[:, 0],
        keep=keep,
        num_selected=num_selected,
        batch_size=batch_size,
        skipped={},
    )


@pytest.mark.parametrize(
    ("keep", "num_selected", "expected"),
    [
        ("highest", 2, [1, 3]),
        ("highest", 5, [1, 3, 6, 10, 11]),
        ("highest", 6, [0, 1, 3, 6, 10, 11]),
        ("lowest", 1, [5]),
        ("lowest", 3, [2, 5, 8]),
        ("lowest", 6, [0, 2, 4, 5, 7, 8]),
        ("lowest", 12, list(range(12))),
    ],
)
def test_keeps_the_wanted_scores_the_earlier_of_equals_in_the_pools_order(
    tmp_path: Path, keep: Literal["lowest", "highest"], num_selected: int, expected: list[int]
) -> None:
    bank = make_bank(tmp_path)
    *parts, last = make_scores(keep, num_selected=num_selected).choose(
        make_pool, make_teacher(), bank
    )
    assert bank.rows(torch.arange(len(bank)))[:, 0, 0, 1].tolist() == expected
    assert [part["scored"] for part in parts] == [10.0, 12.0]
    assert parts[-1]["value"] == pytest.approx(sum(VALUES) / 12)
    chosen = [VALUES[row] for row in expected]
    assert last["selected_value"] == pytest.approx(sum(chosen) / num_selected)
    assert last["bank"] == num_selected


def test_many_equal_scores_keep_the_first(tmp_path: Path) -> None:
    pool = torch.zeros(300, 1, 2, 2, dtype=torch.uint8)
    pool[:, 0, 0, 1] = torch.arange(300).remainder(256)
    bank = make_bank(tmp_path)
    list(
        make_scores(num_selected=40, batch_size=16).choose(
            lambda: TensorPool(pool), make_teacher(), bank
        )
    )
    assert bank.rows(torch.arange(40))[:, 0, 0, 1].tolist() == list(range(40))


def test_resumes_where_it_was_and_then_never_loads_again(tmp_path: Path) -> None:
    first, bank = make_scores(batch_size=1), make_bank(tmp_path)
    next(first.choose(make_pool, make_teacher(), bank))
    state = first.state_dict()
    assert state["scores"].tolist() == [5.0, 9.0, 9.0, 5.0, 9.0]
    assert state["positions"].tolist() == [0, 1, 3, 4, 6]
    second, teacher = make_scores(), make_teacher()
    second.load_state_dict(state)
    reports = list(second.choose(make_pool, teacher, bank))
    assert teacher.backbone.chunks == [1, 1] and len(reports) == 2
    assert bank.rows(torch.arange(5))[:, 0, 0, 1].tolist() == [1, 3, 6, 10, 11]
    third = make_scores()
    third.load_state_dict(second.state_dict())

    def never() -> TensorPool:
        raise AssertionError("loaded")

    assert list(third.choose(never, teacher, bank)) == []
    assert third.state_dict()["scores"].numel() == 0


def test_what_is_skipped_is_told_by_a_run_that_did_not_score(tmp_path: Path) -> None:
    first = make_scores()
    first.skipped["damaged"] = 3
    second = make_scores()
    second.load_state_dict(first.state_dict())
    assert second.skipped == {"damaged": 3}


def test_another_pool_is_scored_from_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Positions in the old one would be other images of the new one."""
    first, bank = make_scores(), make_bank(tmp_path)
    next(first.choose(make_pool, make_teacher(), bank))
    other = TensorPool(make_pool().images.flip(0))
    other.fingerprint = "another"  # type: ignore[misc]
    second = make_scores()
    second.load_state_dict(first.state_dict())
    reports = list(second.choose(lambda: other, make_teacher(), bank))
    assert [report.get("scored") for report in reports] == [10.0, 12.0, None]
    assert "the open world changed" in caplog.text
    chosen = sorted(bank.rows(torch.arange(5))[:, 0, 0, 0].tolist())
    assert chosen == [7, 7, 9, 9, 9]


def test_a_long_choice_is_stored_in_parts_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_world_scores, "_BYTES_PER_REPORT", 3 * 4)  # three images
    expected = [0, 1, 3, 4, 6, 10, 11]
    first, bank = make_scores(num_selected=7, batch_size=5), make_bank(tmp_path)
    parts = first.choose(make_pool, make_teacher(), bank)
    assert next(parts)["scored"] == 12.0
    assert next(parts) == {"bank": 3.0}
    state = first.state_dict()
    next(parts)  # is lost with the process
    bank.truncate(3)
    second, teacher = make_scores(num_selected=7, batch_size=5), make_teacher()
    second.load_state_dict(state)
    assert len(list(second.choose(make_pool, teacher, bank))) == 2
    assert teacher.backbone.chunks == []
    assert bank.rows(torch.arange(len(bank)))[:, 0, 0, 1].tolist() == expected


def test_too_small_a_pool_is_refused_before_scoring(tmp_path: Path) -> None:
    teacher = make_teacher()
    with pytest.raises(UserError, match=r"methods.some.num_selected: is 13, .* 12 images"):
        next(make_scores(num_selected=13).choose(make_pool, teacher, make_bank(tmp_path)))
    assert teacher.backbone.chunks == []


def test_a_broken_teacher_is_reported(tmp_path: Path) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.backbone.scale.fill_(float("nan"))
    with pytest.raises(NumericError, match="teacher: .*not finite"):
        next(make_scores().choose(make_pool, teacher, make_bank(tmp_path)))
