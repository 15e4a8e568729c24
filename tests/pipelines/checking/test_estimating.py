"""`kdci check --estimate`: counted steps are those that stages take, seconds about theirs."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from kdci.probing.memory import Activations
from kdci.probing.reading import made_up_seconds, seconds_per_image
from kdci.probing.subjects import Kind, Subject, Work
from kdci.probing.timing import Curve
from pipelines.checking.estimating.formulas import Tally
from pipelines.checking.estimating.memory import MemoryNeed
from pipelines.checking.estimating.probe import Probes
from pipelines.checking.estimating.stage_steps import Side, stage_work
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.config.params import Params
from kdci.config.params_file import load_params, read_yaml
from kdci.data.open_world.candidates import PoolPart
from kdci.graph.build import graph_of
from kdci.graph.node import Node
from kdci.methods.cmi import Cmi
from kdci.methods.deepinv import DeepInv
from kdci.methods.fast import Fast
from kdci.models import PixelModel
from kdci.models.generators.generator import DaflGenerator, Generator
from kdci.models.generators.patch_discriminator import PatchDiscriminator
from kdci.models.generators.projection_head import ProjectionHead
from kdci.store.layout import Layout
from pipelines.checking.estimating import probe as probe_module
from pipelines.checking.estimating.counting import Counted, _image_sizes, count_part, count_split
from pipelines.checking.estimating.estimate import Estimate, estimate, work_seconds
from pipelines.checking.estimating.text import amount, duration, estimate_lines
from pipelines.cli import run as kdci
from pipelines.explaining.tasks import Task
from pipelines.explaining.work_size import num_steps
from pipelines.params.presets import FOLDER, write_preset
from tests.conftest import Call, Project

TEACHER, STUDENT = "wrn-16-1", "wrn-10-1"
SMALL = 35
"""Modules of a network: the teacher has more, the student fewer."""

# Who was called, how, on how many images; how often.
Calls = Counter[tuple[str, str, int]]

# What a step does to the networks, as hooks see it: (who, how, factor on the count).
SEEN: dict[Kind, str] = {
    "forward": "forward",
    "train": "train",
    "differentiate": "gradient",
    "invert": "gradient",
    "fit": "fit",
    "generate": "generate",
}


# -- exact counts: what hooks see in real stages -----------------------------------------------


def who(module: nn.Module) -> str | None:
    if isinstance(module, PixelModel):
        return TEACHER if sum(1 for _ in module.modules()) > SMALL else STUDENT
    kinds: Mapping[str, tuple[type[nn.Module], ...]] = {
        "generator": (Generator, DaflGenerator),
        "discriminator": (PatchDiscriminator,),
        "head": (ProjectionHead,),
    }
    return next((name for name, types in kinds.items() if isinstance(module, types)), None)


def how(module: nn.Module, batch: Tensor) -> str:
    if isinstance(module, PatchDiscriminator | ProjectionHead):
        return "called"
    if isinstance(module, Generator | DaflGenerator):
        return "fit" if torch.is_grad_enabled() else "generate"
    if module.training:
        return "train"
    return "gradient" if batch.requires_grad else "forward"


@contextmanager
def counted() -> Iterator[tuple[Calls, Calls]]:
    """Count calls of networks, and gradients that reached their images."""
    calls, gradients = Calls(), Calls()

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = who(module)
        if name is None:
            return
        rows = 0 if name == "head" else len(inputs[0])  # negatives come as the memory fills
        key = (name, how(module, inputs[0]), rows)
        calls[key] += 1
        if key[1] == "gradient":
            inputs[0].register_hook(lambda _: gradients.update([key]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield calls, gradients
    finally:
        handle.remove()


def expected(tally: Tally) -> Calls:
    """Return what hooks have to see of counted steps."""
    calls: Calls = Counter()
    for work, count in tally.items():
        if work.kind == "play":  # of made images, of real ones, of made ones for their gradient
            calls["discriminator", "called", work.batch] += 3 * count
        elif work.kind == "contrast":  # queries and keys
            calls["head", "called", 0] += 3 * count
        else:
            role = work.subject.role
            name = work.subject.name if role == "backbone" else role
            calls[name, SEEN[work.kind], work.batch] += count
    return calls


def without_rows(calls: Calls) -> Calls:
    """Return them with the sizes of batches left out."""
    found: Calls = Counter()
    for (name, kind, _), count in calls.items():
        found[name, kind, 0] += count
    return found


METHODS: dict[str, dict[str, Any]] = {
    "dafl": {},
    "fast": {"num_steps": 2},
    "cmi": {},
    "deepinv": {"low_resolution_steps": 1},
    # Parts and portions of the samples that are no whole batches.
    "mosaick": {"warmup_steps": 23, "num_samples": 70, "score_batch_size": 48},
    "dfnd": {"score_batch_size": 64},
    "noise": {},
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A trained teacher larger than its student, and all methods."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(FOLDER / "digits-smoke.yaml", root / "params.yaml")
    blocks = {f"methods__{m}__{k}": v for m, block in METHODS.items() for k, v in block.items()}
    return Project(root).edit(
        grid__teachers=[TEACHER],
        grid__students=[STUDENT],
        grid__methods=[name for name in METHODS if name != "noise"],
        grid__controls=["noise"],
        budget=1.5,
        teacher__num_epochs=1,
        compensation__rebuild=0.3,
        evaluate__batch_size=300,
        runtime__threads=1,
        **blocks,
    )


def side_of(params: Params, root: Path) -> Side:
    layout = Layout(root, params.preset)
    side = Side(params, count_split(params, layout, "train"), count_split(params, layout, "test"))
    side.parts = {name: [Counted(200)] for name in ("mosaick", "dfnd")}
    return side


def run(project: Project, stage: Node) -> tuple[Calls, Calls]:
    """Run a stage in this process, and return what hooks saw."""
    with counted() as (calls, gradients):
        assert project.run(Call(stage.stage, stage.cell)) == 0, stage.name
    return calls, gradients


def require_counted_steps(project: Project, stages: list[Node]) -> None:
    own, other = side_of(project.params, project.root), None
    if project.params.grid.others:
        other = side_of(project.params.of_other(), project.root)
    for stage in stages:
        calls, gradients = run(project, stage)
        side = other if other is not None and stage.of_other else own
        wanted = expected(stage_work(stage, side).steps)
        assert gradients == {k: n for k, n in wanted.items() if k[1] == "gradient"}, stage.name
        if stage.point.get("method") == "mosaick" and re.search("stratified|balanced", stage.name):
            # How many of its chosen images are held out is drawn.
            calls, wanted = without_rows(calls), without_rows(wanted)
        assert calls == wanted, stage.name


def test_stages_take_just_the_steps_that_are_counted(project: Project) -> None:
    stages = project.graph.makers
    evaluations = [stage for stage in stages if stage.kind == "evaluation"]
    wanted = [stage for stage in stages if stage not in evaluations[1:]]
    assert Counter(stage.kind for stage in wanted) == {
        "teacher": 1,
        "pool": 7,
        "dictionary": 6,
        "student": 6 * 2 + 1,
        "evaluation": 1,
    }
    require_counted_steps(project, wanted)


@pytest.mark.slow
def test_so_do_the_stages_of_further_arms_and_of_another_model(project: Project) -> None:
    project.edit(
        grid__arms=["class_balanced", "kdci_stratified"],
        grid__others=["wrn-16-1"],
        other={"data": {"name": "digits5", "path": None}},
        dictionary__space="features",
        compensation__fusion="residual",
    )
    stages = project.graph.makers
    require_counted_steps(project, stages)


def test_a_pool_with_a_known_shift_is_read_and_distilled_alone(tmp_path: Path) -> None:
    """Its base may make images as it goes; a pool whose shift is known stays as it is."""
    shift = {"base": "fast", "num_images": 40}
    values = {"shift": shift, "shifts": {"tail": {}}, "grid__shifts": ["tail"]}
    params, layout = smoke(tmp_path, grid__shift_arms=["vanilla"], **values)
    side = side_of(params, tmp_path)
    backbone = side.nets.backbone("wrn-10-1")
    works = {stage.name: stage_work(stage, side) for stage in graph_of(params, layout.root).makers}
    assert works["shift@wrn-10-1-tail-0"].steps == {Work("forward", backbone, 40): 1}
    steps = {Work("forward", backbone, 8): 12, Work("train", backbone, 8): 12}
    assert works["distill@wrn-10-1-wrn-10-1-tail-vanilla-0-0"].steps == steps


# -- seconds -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_seconds_are_about_those_of_real_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the loops alone: what a process does around them hardly goes with the params.

    With one thread, on the processor's clock: others who use this machine must not matter.
    """
    clock = {name: getattr(time, name) for name in ("time", "strftime", "localtime")}
    clock["monotonic"] = time.process_time
    monkeypatch.setattr("stages.session.time", SimpleNamespace(**clock))
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(FOLDER / "digits.yaml", root / "params.yaml")
    project = Project(root).edit(grid__seeds=[0], budget=0.3, runtime__threads=1)
    project.edit(teacher__num_epochs=4, grid__controls=[])
    params, layout = project.params, project.layout
    probes = estimate(params, layout, seconds=20).probes
    side = Side(params, Counted(898), Counted(899))
    side.parts = {name: [Counted(10_000)] for name in ("mosaick", "dfnd")}
    estimated, real = Counter[str](), Counter[str]()
    for stage in graph_of(params, layout.root).makers:
        run(project, stage)
        if stage.kind in ("teacher", "pool", "student"):
            seconds, is_whole = work_seconds(stage_work(stage, side), probes)
            assert is_whole
            key = f"{stage.kind} {stage.point.get('method', '')}"
            timing = json.loads(layout.timing(stage.artifact).read_text())
            estimated[key] += seconds - probes.start  # type: ignore[assignment]
            real[key] += timing["loop_seconds"]
    print({key: f"{estimated[key]:.2f} / {real[key]:.2f}" for key in real})
    ratio = estimated.total() / real.total()
    print(f"estimated / real: {ratio:.2f}")
    assert 0.5 < ratio < 2


# -- the estimate as a whole, probes made up -----------------------------------------------------


SECONDS = 1e-3
"""What an image takes in any step of a made-up probe."""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step take a millisecond an image, and every network weigh a megabyte."""

    def probe(tally: Tally, readings: Any, *args: Any, seconds: float) -> Probes:
        found = Probes(start=1.0, seconds=seconds)
        for work in tally:
            key = (work.kind, work.subject)
            found.curves[key] = Curve(((1, SECONDS),))
            found.activations[key] = Activations(1e6, 0.0)
            found.weights[work.subject] = found.states[work.subject] = 10**6
        found.reading = dict.fromkeys(readings, SECONDS)
        return found

    monkeypatch.setattr("pipelines.checking.estimating.estimate.probe", probe)


def smoke(tmp_path: Path, **values: Any) -> tuple[Params, Layout]:
    shutil.copy(FOLDER / "digits-smoke.yaml", tmp_path / "params.yaml")
    project = Project(tmp_path).edit(**values)
    return project.params, project.layout


def time_of(found: Estimate, kind: str, method: str = "") -> float:
    (entry,) = [e for e in found.times if (e.kind, e.method) == (kind, method)]
    return entry.seconds


def test_seconds_are_counts_times_probes(tmp_path: Path, made_up: None) -> None:
    params, layout = smoke(tmp_path, runtime__threads=1)
    found = estimate(params, layout)
    # A start, 2 epochs of 8 steps of 128, 899 test images.
    assert time_of(found, "teacher") == pytest.approx(1 + SECONDS * (2 * 8 * 128 + 899))
    # 2 calls of 1 step of 16 images through generator and teacher; 30 predictions.
    assert time_of(found, "pool", "fast") == pytest.approx(1 + SECONDS * (2 * 2 * 16 + 30))
    # 200 photographs are cut out and scored, 64 chosen ones once more; 61 of them are predicted.
    assert time_of(found, "pool", "dfnd") == pytest.approx(1 + SECONDS * (200 + 200 + 64 + 61))
    # Two students of 12 steps of 8 images through teacher and student.
    assert time_of(found, "student", "dfnd") == pytest.approx(2 * (1 + SECONDS * 12 * 2 * 8))
    assert found.num_stages == 1 + 2 + 2 + 4 + 2 and found.num_in_place == 0
    assert found.seconds == pytest.approx(sum(entry.seconds for entry in found.times))


def test_what_is_in_place_is_not_counted(built: Project, made_up: None) -> None:
    whole = estimate(built.params, built.layout)
    assert (whole.num_stages, whole.num_in_place, whole.times) == (11, 11, [])
    shutil.rmtree(built.layout.artifacts / "students" / "wrn-10-1/wrn-10-1/fast/kdci")
    (entry,) = estimate(built.params, built.layout).times
    assert (entry.kind, entry.method, entry.number) == ("student", "fast", 1)


def test_an_adopted_teacher_is_not_trained(tmp_path: Path, made_up: None) -> None:
    params, layout = smoke(tmp_path, teacher__artifact="teachers/{teacher}")
    found = estimate(params, layout)
    assert found.num_adopted == 1
    assert time_of(found, "adopted teacher") == pytest.approx(1 + SECONDS * 899)
    assert "1 teacher to adopt: " in "\n".join(estimate_lines(found, tmp_path))


@pytest.mark.parametrize(
    ("threads", "load", "warned"), [(2, 99.0, True), (2, 0.1, False), (1, 99.0, False)]
)
def test_a_busy_machine_is_told(
    tmp_path: Path,
    made_up: None,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    load: float,
    warned: bool,
) -> None:
    """With one thread the processor's own clock counts."""
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    params, layout = smoke(tmp_path, runtime__threads=threads)
    told = "\n".join(estimate_lines(estimate(params, layout), tmp_path))
    assert ("others keep this machine busy (load 99.0 on " in told) == warned


def test_a_budget_takes_its_share(tmp_path: Path, made_up: None) -> None:
    write_preset("table1-cifar10", tmp_path / "params.yaml")
    params = load_params(tmp_path / "params.yaml")
    found = estimate(params, Layout(tmp_path, params.preset))
    teachers = time_of(found, "teacher")
    students = sum(entry.seconds for entry in found.times if entry.kind == "student")
    (tenth, whole), (hundredth, _) = found.budgets[0.1], found.budgets[0.01]
    assert whole and found.budgets.keys() == {0.1, 0.01}
    # Teachers and what chooses images are not scaled; nearly all the rest is.
    assert teachers + 0.1 * students < tenth < 0.2 * found.seconds
    assert teachers + 0.01 * students < hundredth < tenth


def test_memory_is_that_of_the_heaviest_step(tmp_path: Path, made_up: None) -> None:
    params, layout = smoke(tmp_path)
    needs = {need.stage.partition("@")[0]: need for need in estimate(params, layout).memory}
    # SGD: weights, gradients and momentum; a batch of 128 at a megabyte an image.
    assert needs["teacher"] == MemoryNeed("teacher@wrn-10-1", 128, 3 * 10**6, 128 * 10**6)
    # A refresh of 16 images through generator, teacher and student; the student's step has 8.
    assert needs["distill"].activations == 3 * 16 * 10**6
    # Teacher, Fast's generators, and the student with what trains it.
    assert needs["distill"].networks == (1 + 9 + 3) * 10**6


def test_what_does_not_fit_is_said_aloud(
    tmp_path: Path, made_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600,000 images of 224 pixels are 90 GB: neither the pool nor the open world is ever held."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=4 * 10**8))
    write_preset("table3", tmp_path / "params.yaml")
    params = load_params(tmp_path / "params.yaml")
    found = estimate(params, Layout(tmp_path, params.preset))
    told = "\n".join(estimate_lines(found, tmp_path))
    # The open world is a stream: three chunks of 222 images, a batch of 256 as bytes and floats.
    (world,) = [need for need in found.host if "the open world of dfnd" in need.what]
    assert world.num_bytes == (3 * 222 + 9 * 256) * 3 * 224**2 < 10**9
    assert not [need for need in found.host if "pool" in need.what]
    assert "as it is read and scored  MORE THAN THIS MACHINE HAS" in told
    assert "imagenet is published in 150 GB of archives" in told
    assert "at least 600,000 images  missing: data/open-world" in told


def test_shares_of_the_time_add_up(tmp_path: Path, made_up: None) -> None:
    """DeepInv inverts at two resolutions, which are one line."""
    write_preset("table3", tmp_path / "params.yaml")
    params = load_params(tmp_path / "params.yaml")
    found = estimate(params, Layout(tmp_path, params.preset))
    parts = [*found.by_step.values(), found.reading_seconds, found.start_seconds]
    assert sum(parts) == pytest.approx(found.seconds)
    inverted = sum(s for (kind, _), s in found.by_step.items() if kind == "invert")
    share = f"{100 * inverted / found.seconds:.0f} % inversion of resnet-50"
    assert share in "\n".join(estimate_lines(found, tmp_path))


def test_disk_holds_pools_students_and_growing_banks(tmp_path: Path, made_up: None) -> None:
    params, layout = smoke(tmp_path, grid__methods=["fast"])
    needs = {need.kind: need for need in estimate(params, layout).disk}
    row = 16 * 16
    assert needs["pool"].num_bytes == 32 * row + 30 * 10 * 4  # and the teacher's logits
    # A student and two snapshots each; 2 epochs add a batch of 16.
    assert needs["student"].num_bytes == 2 * 3 * 10**6
    assert needs["student"].largest_work == 2 * 16 * row


def test_what_was_not_probed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, layout = smoke(tmp_path, grid__methods=["fast"])
    monkeypatch.setattr(probe_module, "_process_start", lambda *_: 0.0)
    found = estimate(params, layout, seconds=0.0)
    told = "\n".join(estimate_lines(found, tmp_path))
    assert "not probed (no time was left): " in told and "training of wrn-10-1" in told
    assert all(entry.incomplete == entry.number for entry in found.times)
    assert "0.0 s or more" in told


def test_a_step_may_stand_in_for_another_of_its_network() -> None:
    nets = Subject("backbone", "wrn-10-1", DATASETS["digits"])
    probes = Probes(curves={("forward", nets): Curve(((1, 2.0),))})
    assert probes.step_seconds(Work("forward", nets, 3)) == 6.0
    assert probes.step_seconds(Work("train", nets, 3)) == pytest.approx(18.0)
    assert probes.step_seconds(Work("train", replace(nets, name="wrn-16-1"), 3)) is None


def test_reading_missing_images_is_timed_on_made_up_ones(tmp_path: Path) -> None:
    spec = DATASETS["cifar10"]
    assert made_up_seconds(spec, seconds=0.1) > 0
    missing = PoolPart("folder", tmp_path / "none")
    assert seconds_per_image(missing, spec, seconds=0.1)[1] is False
    assert count_part(missing, 7) == Counted(7, is_found=False)


# -- the command -------------------------------------------------------------------------------


def test_the_estimate_is_printed_where_data_is_missing(
    tmp_path: Path, made_up: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_preset("table1-cifar10", tmp_path / "params.yaml")
    before = sorted(tmp_path.rglob("*"))
    assert kdci(["--root", str(tmp_path), "check", "--estimate"]) == 2
    told = capsys.readouterr()
    assert told.err.count("kdci: error: ") == 2
    assert told.out.startswith("estimate of table1-cifar10 at budget 1: ")
    assert re.search(r"cifar10, training +50,000 images +missing: data\n", told.out)
    for method in ("dafl", "fast", "cmi", "deepinv", "mosaick", "dfnd"):
        assert re.search(rf"^ +{method} ", told.out, re.MULTILINE)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_good_project_is_estimated_for_real(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command to the networks: in a few seconds, with nothing left out."""
    smoke(tmp_path, grid__methods=["fast"], runtime__threads=1)
    arguments = ["--root", str(tmp_path), "check", "--estimate", "--probe-seconds", "30"]
    assert kdci(arguments) == 0
    told = capsys.readouterr().out
    assert told.startswith("ok: 2 cells")
    assert "comes with scikit-learn" in told and "most of it: " in told
    assert "not probed" not in told
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


# -- steps of a stage, and words -----------------------------------------------------------------


@pytest.mark.parametrize("budget", [1.0, 0.1, 0.01, 3.0])
def test_work_size_is_scaled_as_the_params_are(budget: float) -> None:
    tree = read_yaml(FOLDER / "table1-cifar10.yaml")
    params = Params.model_validate({**tree, "budget": budget})
    for method in params.grid.methods:
        blocks = params.blocks("budget", f"methods.{method}", f"recipes.{method}")
        scaled = params.method(method)
        steps = num_steps(Task("substitute", {"method": method}), blocks)
        wanted = {
            "dafl": getattr(scaled, "num_steps", None),
            "mosaick": getattr(scaled, "warmup_steps", None),
            "dfnd": None,
        }
        if isinstance(scaled, Fast | Cmi | DeepInv):
            wanted[method] = scaled.warmup_calls * scaled.num_steps
        assert steps == wanted[method]
        assert (
            num_steps(Task("distill", {"method": method}), blocks)
            == params.recipe(method).num_steps
        )


def test_work_size_of_a_pool_that_depends_on_the_teacher_is_not_known() -> None:
    task = Task("substitute", {"method": "fast"})
    block = {"warmup_calls": 2, "num_steps": 3, "by_teacher": {"vgg-11": {"num_steps": 4}}}
    assert num_steps(task, {"methods.fast": block}) is None
    block["by_teacher"] = {"vgg-11": {"one_hot_weight": 0.5}}
    assert num_steps(task, {"methods.fast": block}) == 6


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.44, "0.4 s"),
        (59, "59 s"),
        (130, "2.2 min"),
        (5400, "90 min"),
        (6000, "1.7 h"),
        (360_000, "100 h"),
        (3_600_000, "42 days"),
        (1e8, "1,160 days"),
    ],
)
def test_durations_have_two_digits(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_amounts_are_decimal() -> None:
    assert [amount(n) for n in (200, 1.2e6, 9.04e10, 1.5e12)] == [
        "0 kB",
        "1.2 MB",
        "90 GB",
        "1.5 TB",
    ]


def test_links_in_a_circle_are_counted_once(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"1234")
    (folder / "again").symlink_to(tmp_path / "train")
    assert list(_image_sizes(str(tmp_path / "train"))) == [4]
