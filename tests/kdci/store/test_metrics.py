from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdci.store.metrics import MetricFile, RunningMeans, read_metrics


class TestMetricFile:
    def test_one_json_object_a_line_readable_at_once(self, tmp_path: Path) -> None:
        sink = MetricFile(tmp_path / "metrics.jsonl")
        sink.log(3, loss=0.5, epoch=1)
        first = (tmp_path / "metrics.jsonl").read_text()
        assert json.loads(first) == {"step": 3, "loss": 0.5, "epoch": 1} and first.endswith("\n")
        sink.log(6, loss=0.25)
        assert read_metrics(sink.path) == [
            {"step": 3, "loss": 0.5, "epoch": 1},
            {"step": 6, "loss": 0.25},
        ]
        assert len(sink) == 2 and sink.newest == {"loss": 0.25}

    def test_goes_on_in_a_file_that_is_there(self, tmp_path: Path) -> None:
        MetricFile(tmp_path / "m").log(1, loss=1.0)
        again = MetricFile(tmp_path / "m")
        assert len(again) == 1
        again.log(2, loss=2.0)
        assert [row["step"] for row in read_metrics(tmp_path / "m")] == [1, 2]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_refuses_what_is_not_finite_and_writes_nothing(
        self, tmp_path: Path, value: float
    ) -> None:
        sink = MetricFile(tmp_path / "m")
        with pytest.raises(ValueError, match="metric loss at step 4"):
            sink.log(4, accuracy=1.0, loss=value)
        assert not sink.path.exists() and len(sink) == 0

    def test_numbers_come_back_bit_for_bit(self, tmp_path: Path) -> None:
        MetricFile(tmp_path / "m").log(1, third=1 / 3, tiny=5e-324, big=1.7e308)
        (row,) = read_metrics(tmp_path / "m")
        assert (row["third"], row["tiny"], row["big"]) == (1 / 3, 5e-324, 1.7e308)

    @pytest.mark.parametrize(("kept", "expected"), [(0, []), (2, [0, 1]), (3, [0, 1, 2])])
    def test_truncate_keeps_what_a_checkpoint_knows(
        self, tmp_path: Path, kept: int, expected: list[int]
    ) -> None:
        sink = MetricFile(tmp_path / "m")
        for step in range(3):
            sink.log(step, loss=0.0)
        sink.truncate(kept)
        assert [row["step"] for row in read_metrics(sink.path)] == expected
        assert len(sink) == len(expected)
        sink.log(9, loss=0.0)
        assert [row["step"] for row in read_metrics(sink.path)] == [*expected, 9]

    def test_truncating_before_the_first_line(self, tmp_path: Path) -> None:
        sink = MetricFile(tmp_path / "m")
        sink.truncate(0)
        assert read_metrics(sink.path) == []

    def test_a_torn_last_line_is_left_out(self, tmp_path: Path) -> None:
        sink = MetricFile(tmp_path / "m")
        sink.log(1, loss=0.5)
        sink.log(2, loss=0.25)
        whole = sink.path.read_text()
        first = whole.index("\n") + 1
        for cut in range(first, len(whole) - 1):
            sink.path.write_text(whole[:cut])
            assert [row["step"] for row in read_metrics(sink.path)] == [1]
            assert len(MetricFile(sink.path)) == 1

    def test_a_line_after_a_torn_one_is_not_lost(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
        sink = MetricFile(path)
        sink.truncate(len(sink))
        sink.log(2, loss=0.25)
        assert [row["step"] for row in read_metrics(path)] == [1, 2]


class TestRunningMeans:
    def test_means_by_hand_then_starts_over(self) -> None:
        means = RunningMeans()
        for value in (1.0, 2.0, 6.0):
            means.add({"loss": value, "agreement": 10 * value})
        assert means.take() == {"loss": 3.0, "agreement": 30.0}
        means.add({"loss": 5.0})
        assert means.take() == {"loss": 5.0}

    def test_state_goes_on_in_the_middle(self) -> None:
        whole, torn = RunningMeans(), RunningMeans()
        for means in (whole, torn):
            means.add({"loss": 0.1})
        resumed = RunningMeans()
        resumed.load_state_dict(json.loads(json.dumps(torn.state_dict())))
        for means in (whole, resumed):
            means.add({"loss": 0.2})
        assert whole.take() == resumed.take()

    def test_a_loaded_state_is_not_changed_by_going_on(self) -> None:
        state = {"totals": {"loss": 1.0}, "count": 1}
        means = RunningMeans()
        means.load_state_dict(state)
        means.add({"loss": 2.0})
        assert state == {"totals": {"loss": 1.0}, "count": 1}
