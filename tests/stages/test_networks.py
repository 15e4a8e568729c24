"""What the networks of a stage compute in: chosen, kept, on the card; the teacher folded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

from kdci.models import compiling, networks
from kdci.models.pixel_model import is_channels_last
from kdci.models.students import Student
from kdci.training import scoring
from tests.conftest import WRN, Call, Project


def card_of(project: Project, call: Call) -> dict:
    return json.loads((project.artifact(call) / "card.json").read_text())


def rerun(project: Project, **values: object) -> tuple[dict, dict]:
    """Distil again under other params; return the card and the student's tensors."""
    call = Call.of("vanilla")
    project.edit(**values).build(call)
    return card_of(project, call), load_file(project.artifact(call) / "model.safetensors")


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what is measured; contiguous is always twice as fast."""
    measured: list[str] = []

    def measure(build, candidates, device):
        build(candidates[0])(2)  # what would be timed does work
        measured.append("probe")
        return {one: 1.0 if one.channels_last else 0.5 for one in candidates}

    monkeypatch.setattr(networks, "measure", measure)
    return measured


def test_formats_that_are_named_are_not_measured(built: Project, probes: list[str]) -> None:
    card, _ = rerun(built, runtime__memory_format="channels_last", runtime__precision="fp32")
    assert probes == []
    assert card["runtime"]["formats"] == {
        f"{WRN} frozen": "fp32 channels_last",
        f"{WRN} trained": "fp32 channels_last",
    }
    assert not built.layout.formats.exists()


def test_auto_measures_each_role_once_and_the_network_is_what_was_chosen(
    built: Project, probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    build = networks.build_network

    def spy(*arguments, **options):
        made.append(options["channels_last"])
        return build(*arguments, **options)

    monkeypatch.setattr(networks, "build_network", spy)
    card, first = rerun(built, runtime__memory_format="auto", runtime__precision="fp32")
    assert set(card["runtime"]["formats"].values()) == {"fp32 contiguous"}
    assert len(probes) == 2 and made[-1] is False
    kept = sorted(built.layout.formats.iterdir())
    roles = [json.loads(file.read_text())["subject"]["role"] for file in kept]
    assert sorted(roles) == ["frozen", "trained"]

    _, second = rerun(built, distill__num_snapshots=1)
    assert len(probes) == 2  # decided before
    assert first.keys() == second.keys()
    assert all(second[name].equal(tensor) for name, tensor in first.items())


def test_the_teacher_of_a_distillation_is_folded_unless_that_is_switched_off(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    plain = compiling.for_predictions

    def spy(*arguments, **options):
        given = plain(*arguments, **options)
        seen.append(sum(isinstance(one, nn.BatchNorm2d) for one in given.modules()))
        return given

    monkeypatch.setattr(compiling, "for_predictions", spy)
    _, folded = rerun(built)
    _, whole = rerun(built, runtime__fold_teacher=False)
    assert seen == [4, 7]
    # The same teacher, up to rounding: after twelve steps the students are nearly the same too.
    for name, tensor in whole.items():
        if tensor.is_floating_point():
            assert (folded[name] - tensor).abs().max() < 1e-2 * tensor.abs().max().clamp(min=1)


@pytest.mark.slow
def test_a_compiled_distillation_ends_in_nearly_the_same_student(built: Project) -> None:
    _, plain = rerun(built)
    _, compiled = rerun(built, runtime__compile="both")
    assert compiled.keys() == plain.keys()
    for name, tensor in plain.items():
        if tensor.is_floating_point():
            assert (compiled[name] - tensor).abs().max() < 1e-2 * tensor.abs().max().clamp(min=1)


def test_scoring_uses_the_students_own_format(
    built: Project, probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    plain = scoring.predict_logits

    def spy(logits_of, *arguments, **options):
        if isinstance(logits_of, Student):
            seen.append(is_channels_last(logits_of.backbone))
        return plain(logits_of, *arguments, **options)

    monkeypatch.setattr(scoring, "predict_logits", spy)
    built.edit(runtime__memory_format="auto", runtime__precision="fp32")
    built.build(Call.of("evaluate"))
    assert seen and not any(seen)
    card = json.loads(Path(built.artifact(Call.of("evaluate")) / "card.json").read_text())
    assert card["runtime"]["formats"] == {f"{WRN} frozen": "fp32 contiguous"}
