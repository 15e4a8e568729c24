"""Further arms, pools with a known shift, and another model's dictionary, stage by stage."""

from __future__ import annotations

import math
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdci.data.bank.image_bank import ImageBank
from kdci.data.datasets import loading as datasets
from kdci.deconfounding.arms import ARMS, FURTHER_ARMS
from kdci.deconfounding.compensation import Compensation
from kdci.deconfounding.known_shift import degrade_chunks, long_tail_counts
from kdci.deconfounding.logit_adjustment import LogitAdjustment
from kdci.models.folding import fold_batch_norms
from kdci.models.pretrained import build_network, load_teacher
from kdci.reporting.results import load_rows
from kdci.store.artifacts import open_artifact
from kdci.store.checkpoints import load_state
from kdci.store.layout import all_cells
from kdci.substitution.base import SourceContext
from kdci.training.distillation import Distiller
from kdci.training.runtime import derive_seed
from tests.conftest import Call, Project
from tests.stages.test_session import IN_LOOP

pytestmark = pytest.mark.slow

WRN = "wrn-10-1"
SHIFT_ARMS = ["vanilla", "kdci", "class_balanced", "logit_adjusted", "kdci_stratified"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A small experiment with every arm. Shared: tests change copies only."""
    from tests.conftest import ROOT

    root = tmp_path_factory.mktemp("arms") / "project"
    root.mkdir()
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", root / "params.yaml")
    project = Project(root).edit(
        grid__methods=["fast"],
        grid__arms=list(FURTHER_ARMS),
        grid__others=[WRN],
        grid__shifts=["balanced", "tail", "poor"],
        grid__shift_arms=SHIFT_ARMS,
        # A teacher and a pool that know all classes well, on every processor, or none could be
        # balanced.
        teacher__num_epochs=14,
        teacher__batch_size=64,
        methods__fast__warmup_calls=12,
        methods__fast__batch_size=32,
        methods__fast__num_steps=10,
        methods__fast__one_hot_weight=3.0,
        compensation__fusion="residual",
        compensation__rebuild=0.05,
        other={"data": {"name": "digits5", "path": None, "test": "test"}},
        # Low enough to hold on a pool with something of every class, or two arms are one.
        intervention={"strata": "classes", "max_repeats": 1.1, "tau": 1.0},
        shift={"base": "fast", "num_images": 60, "temperature": 4.0},
        shifts={"balanced": {}, "tail": {"imbalance": 8.0}, "poor": {"noise": 0.2, "blur": 0.7}},
    )
    return project.build()


def of_other(stage):
    """Return the other model's call of a stage."""
    return Call(stage, f"other-{Call.of(stage).cell}")


@pytest.fixture
def copy(everything, tmp_path):
    root = tmp_path / "copy"
    for name in ("artifacts", "report"):
        shutil.copytree(everything.root / name, root / name)
    shutil.copy(everything.root / "params.yaml", root)
    return Project(root)


def student_of(project, arm, method="fast"):
    cell = next(c for c in all_cells(project.params.grid) if (c.variant, c.method) == (arm, method))
    return open_artifact(project.layout.student(cell), kind="student")


# -- arms ------------------------------------------------------------------------------------------


def test_every_cell_has_its_row(everything):
    rows = load_rows(everything.layout.report / "results.json")
    wanted = [(cell.method, cell.variant) for cell in all_cells(everything.params.grid)]
    assert [(row.method, row.variant) for row in rows] == wanted
    assert len(wanted) == len(ARMS) + 3 * len(SHIFT_ARMS)
    for row in rows:
        assert (row.accuracy_compensated is not None) == ARMS[row.variant].compensated
        assert row.accuracy == row.accuracy_backbone


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_opens_the_dictionary_it_needs_and_no_other(everything, name):
    parents = student_of(everything, name).card["parents"]
    own = everything.card(Call.of("dictionary"))["content"]
    other = everything.layout.other.dictionary(WRN, "fast", 0)
    contents = {
        None: None,
        "own": own,
        "other": open_artifact(other, kind="dictionary").card["content"],
    }
    assert parents.get("dictionary") == contents[ARMS[name].dictionary]


def test_every_arm_makes_a_student_of_its_own(everything):
    weights = {
        name: student_of(everything, name).card["files"]["model.safetensors"]["sha256"]
        for name in ARMS
    }
    assert len(set(weights.values())) == len(ARMS)


def by_hand(project, tmp_path, *, module=None, stratum_of=None, max_repeats=math.inf):
    """Distil Fast's student without the stage, from the same pool and seeds."""
    params, layout = project.params, project.layout
    spec, seed = params.data.spec, derive_seed(0, 0, "distill")
    artifact = open_artifact(layout.teacher(WRN), kind="teacher")
    pool = open_artifact(layout.pool(WRN, "fast", 0), kind="pool")
    teacher = load_teacher(artifact, spec)
    bank = ImageBank(tmp_path / "bank.bin", shape=(1, 16, 16), base=pool.file("images.npy"))
    context = SourceContext(teacher, spec, bank, derive_seed(seed, "source"), 0.5, lambda: None)
    source = params.methods["fast"].source(context)
    source.load_state_dict(load_state(pool.path / "source"))
    source.reseed(context.seed)
    if stratum_of is not None:
        source.stratify(lambda images: stratum_of(teacher(images)), max_repeats=max_repeats)
    student = build_network(WRN, spec, seed=derive_seed(seed, "student"))
    sink = type("Sink", (), {"log": lambda self, step, **values: None})()
    distiller = Distiller(
        teacher=fold_batch_norms(teacher, spec.image_size),
        student=student,
        source=source,
        compensation=module,
        sink=sink,
        **params.recipe("fast").model_dump(),
    )
    for _ in distiller.run():
        pass
    return student.state_dict()


def assert_is_student(project, arm, weights):
    stored = load_file(student_of(project, arm).path / "model.safetensors")
    assert weights.keys() == stored.keys()
    for name, tensor in weights.items():
        assert tensor.equal(stored[name]), name


def test_class_balanced_draws_evenly_over_the_teachers_classes(everything, tmp_path):
    torch.set_num_threads(1)
    weights = by_hand(everything, tmp_path, stratum_of=lambda out: out.logits.argmax(dim=1))
    assert_is_student(everything, "class_balanced", weights)


def test_prototype_balanced_draws_evenly_over_the_prototypes(everything, tmp_path):
    torch.set_num_threads(1)
    path = everything.layout.dictionary(WRN, "fast", 0) / "dictionary.safetensors"
    prototypes = load_file(path)["prototypes"]

    def nearest(output):
        return (output.logits[:, None] - prototypes).square().sum(dim=2).argmin(dim=1)

    weights = by_hand(everything, tmp_path, stratum_of=nearest)
    assert_is_student(everything, "prototype_balanced", weights)


def test_logit_adjusted_adds_the_pools_log_proportions(everything, tmp_path):
    torch.set_num_threads(1)
    pool = open_artifact(everything.layout.pool(WRN, "fast", 0), kind="pool")
    classes = pool.tensors("predictions.safetensors")["logits"].argmax(dim=1)
    counts = np.bincount(classes.numpy(), minlength=10) + 1
    prior = torch.from_numpy(np.log(counts / counts.sum())).float()
    weights = by_hand(everything, tmp_path, module=LogitAdjustment(prior))
    assert_is_student(everything, "logit_adjusted", weights)
    artifact = student_of(everything, "logit_adjusted")
    assert artifact.facts["compensation"] is None  # nothing of it is deployed
    assert not (artifact.path / "compensation.safetensors").exists()


CAP = 1.25
"""Low enough to hold on the small pool here."""


def capped(copy, *arms):
    copy.edit(intervention={"strata": "classes", "max_repeats": CAP, "tau": 1.0})
    return copy.build(*(Call.of(arm) for arm in arms))


def test_the_cap_holds_for_strata_and_not_for_the_plain_remedy(copy, tmp_path):
    torch.set_num_threads(1)
    before = student_of(copy, "class_balanced").card["content"]
    capped(copy, "stratified", "class_balanced")
    weights = by_hand(
        copy, tmp_path, stratum_of=lambda out: out.logits.argmax(dim=1), max_repeats=CAP
    )
    assert_is_student(copy, "stratified", weights)
    after = student_of(copy, "class_balanced")
    assert after.card["content"] == before
    files = (student_of(copy, "stratified").card["files"], after.card["files"])
    assert files[0]["model.safetensors"] != files[1]["model.safetensors"]  # the cap does hold


def test_kdci_stratified_is_the_compensation_of_the_draw_at_scale_1(copy, tmp_path):
    torch.set_num_threads(1)
    capped(copy, "kdci_stratified")
    tensors = load_file(copy.layout.dictionary(WRN, "fast", 0) / "dictionary.safetensors")
    pool = open_artifact(copy.layout.pool(WRN, "fast", 0), kind="pool")
    classes = pool.tensors("predictions.safetensors")["logits"].argmax(dim=1)
    share = torch.zeros(10, dtype=torch.float64)
    counts = torch.bincount(classes, minlength=10)
    # Caps of the small classes first; what they leave is spread over the others.
    left, order = 1.0, counts.argsort().tolist()
    for rank, label in enumerate(order):
        share[label] = min(left / (10 - rank), CAP * int(counts[label]) / len(classes))
        left -= float(share[label])
    drawn = torch.zeros(len(tensors["prototypes"]), dtype=torch.float64)
    for row, prototype in enumerate(tensors["assignments"].tolist()):
        drawn[prototype] += share[classes[row]] / counts[classes[row]]
    seed = derive_seed(derive_seed(0, 0, "distill"), "compensation")
    module = Compensation(
        tensors["prototypes"],
        (drawn / drawn.sum()).float(),
        num_classes=10,
        fusion="residual",
        scale=1.0,
        seed=seed,
    )
    weights = by_hand(
        copy,
        tmp_path,
        module=module,
        stratum_of=lambda out: out.logits.argmax(dim=1),
        max_repeats=CAP,
    )
    stored = load_file(student_of(copy, "kdci_stratified").path / "compensation.safetensors")
    torch.testing.assert_close(stored["factors_N"], (drawn / drawn.sum()).float())
    assert float(stored["scale"]) == 1.0
    assert_is_student(copy, "kdci_stratified", weights)


def test_strata_leave_the_compensation_the_proportions_that_are_drawn(copy):
    """Evenly over the prototypes, P(z) is 1/N; a cap of 1 leaves the pool's."""
    call = Call.of("kdci_stratified")
    path = copy.layout.dictionary(WRN, "fast", 0) / "dictionary.safetensors"
    pools = load_file(path)["proportions"]
    for cap, expected in ((None, torch.full_like(pools, 1 / len(pools))), (1.0, pools)):
        copy.edit(intervention={"strata": "prototypes", "max_repeats": cap, "tau": 1.0}).build(call)
        module = load_file(copy.artifact(call) / "compensation.safetensors")
        torch.testing.assert_close(module["factors_N"], expected)


@pytest.mark.parametrize(
    ("arm", "option"),
    [
        ("kdci_random_lambda", {"weights": "random"}),
        ("kdci_random_prototypes", {"prototypes": "random"}),
        ("kdci_without_proportions", {"proportions": "none"}),
    ],
)
def test_ablations_are_the_compensation_with_one_value_changed(copy, tmp_path, arm, option):
    torch.set_num_threads(1)
    copy.edit(compensation__rebuild=None, compensation__scale=1.0).build(Call.of(arm))
    path = copy.layout.dictionary(WRN, "fast", 0) / "dictionary.safetensors"
    tensors = load_file(path)
    seed = derive_seed(derive_seed(0, 0, "distill"), "compensation")
    module = Compensation(
        tensors["prototypes"],
        tensors["proportions"],
        num_classes=10,
        fusion="residual",
        seed=seed,
        **option,
    )
    assert_is_student(copy, arm, by_hand(copy, tmp_path, module=module))


def test_rebuilt_dictionaries_lie_beside_the_student(everything):
    """The bank grows by a call of 32 an epoch: by 9 % and then by 8 % of what was clustered."""
    artifact = student_of(everything, "kdci")
    assert artifact.facts["rebuilt"] == [0, 6]
    first = load_file(everything.layout.dictionary(WRN, "fast", 0) / "dictionary.safetensors")
    last = load_file(artifact.path / "dictionary-000000006.safetensors")
    assert not last["prototypes"].equal(first["prototypes"])
    assert float(last["proportions"].sum()) == pytest.approx(1)
    module = load_file(artifact.path / "compensation.safetensors")
    assert module["prototypes_ND"].equal(last["prototypes"])
    assert student_of(everything, "class_balanced").facts["rebuilt"] == []
    assert student_of(everything, "kdci_other").facts["rebuilt"] == []


KILLED = ("kdci", "class_balanced", "logit_adjusted", "kdci_stratified", "kdci_random_lambda")


@pytest.mark.parametrize("arm", KILLED)
def test_a_killed_arm_ends_with_the_same_bytes(copy, forks, arm):
    call = Call.of(arm)
    expected = copy.content(call)
    assert forks.run(copy, call, **IN_LOOP["after a checkpoint"]) == -signal.SIGKILL
    assert copy.run(call) == 0
    assert copy.content(call) == expected
    assert copy.leftovers() == []


def test_strata_of_an_adopted_dictionary_are_refused(copy, capsys):
    other = copy.layout.other.dictionary(WRN, "fast", 0).relative_to(copy.root)
    copy.edit(dictionary__artifact=str(other)).build(Call.of("dictionary"))
    assert copy.run(Call.of("prototype_balanced")) == 2
    assert "dictionary.artifact: strata are prototypes" in capsys.readouterr().err


# -- known shifts ----------------------------------------------------------------------------------


def pool_of(project, method):
    pool = open_artifact(project.layout.pool(WRN, method, 0), kind="pool")
    images, holdout = np.load(pool.file("images.npy")), np.load(pool.file("holdout.npy"))
    return pool, images, holdout


@pytest.mark.parametrize(("shift", "imbalance"), [("balanced", 1.0), ("tail", 8.0)])
def test_a_long_tail_is_made_of_the_bases_images(everything, shift, imbalance):
    base, base_images, base_holdout = pool_of(everything, "fast")
    pool, images, holdout = pool_of(everything, shift)
    labels = base.tensors("predictions.safetensors")["logits"].argmax(dim=1).tolist()
    label_of = {image.tobytes(): labels[row] for row, image in enumerate(base_images)}
    classes = np.array([label_of[image.tobytes()] for image in images])
    counts = sorted(np.bincount(classes, minlength=10).tolist(), reverse=True)
    assert counts == long_tail_counts(60, 10, imbalance).tolist()
    assert np.array_equal(holdout, base_holdout)
    assert pool.facts["num_distinct"] == len({image.tobytes() for image in images})
    assert pool.card["parents"]["base"] == base.card["content"]


def test_quality_is_lowered_of_the_same_images(everything):
    """The same rows as `balanced` has, degraded; what is held out is degraded alike."""
    _, plain, plain_holdout = pool_of(everything, "balanced")
    pool, images, holdout = pool_of(everything, "poor")
    seed = derive_seed(0, "shift")
    for before, after, role in ((plain, images, "pool"), (plain_holdout, holdout, "holdout")):
        noise = derive_seed(seed, "noise", role)
        chunk = torch.from_numpy(before)
        (expected,) = degrade_chunks([chunk], blur=0.7, noise=0.2, contrast=1.0, seed=noise)
        assert np.array_equal(after, expected.numpy())
    assert pool.facts["confidence"] > 0


@pytest.mark.parametrize("arm", SHIFT_ARMS)
def test_a_known_shift_stays_as_it_is(everything, arm):
    _, images, _ = pool_of(everything, "tail")
    artifact = student_of(everything, arm, "tail")
    assert artifact.facts["num_images"] == len(images) == 60
    assert "shifts.tail" in artifact.card["params"] and "recipes.fast" in artifact.card["params"]


def test_same_shift_same_bytes(copy):
    for call in (Call.of("shift", "tail"), Call.of("kdci", "tail")):
        expected = copy.content(call)
        copy.build(call)
        assert copy.content(call) == expected


def test_a_base_without_some_class_is_told(copy, capsys):
    copy.edit(shift={"base": "fast", "num_images": 9, "temperature": 4.0})
    assert copy.run(Call.of("shift", "balanced")) == 2
    assert "shifts.balanced: 9 images leave a class without any" in capsys.readouterr().err


# -- the other model -------------------------------------------------------------------------------


def test_the_other_dictionary_has_the_other_models_classes(everything):
    layout = everything.layout.other
    teacher = open_artifact(layout.teacher(WRN), kind="teacher")
    assert teacher.facts["num_classes"] == 5 and teacher.facts["dataset"] == "digits5"
    dictionary = open_artifact(layout.dictionary(WRN, "fast", 0), kind="dictionary")
    assert dictionary.facts["dimension"] == 5 and not dictionary.facts["adopted"]
    shape = student_of(everything, "kdci_other").facts["compensation"]
    assert shape["dimension"] == 5 and shape["fusion"] == "residual"
    assert student_of(everything, "kdci").facts["compensation"]["dimension"] == 10


def test_the_other_model_has_to_be_in_the_grid(copy, capsys):
    copy.edit(grid__others=[])
    assert copy.run(of_other("teacher")) == 2
    assert "is no cell of `teacher`" in capsys.readouterr().err


def test_an_arm_outside_the_grid_is_refused(copy, capsys):
    copy.edit(grid__others=[], grid__arms=[], grid__shift_arms=["vanilla"])
    for arm in ("kdci_other", "logit_adjusted"):
        assert copy.run(Call.of(arm)) == 2
        assert f"-{arm}-0-0: is no cell of `distill`" in capsys.readouterr().err
    assert copy.run(Call.of("kdci", "tail")) == 2
    assert "-tail-kdci-0-0: is no cell of `distill`" in capsys.readouterr().err


def test_tracking_takes_the_other_models_artifacts_for_current(everything):
    from pipelines.tracking.reading.snapshot import take_snapshot

    files = take_snapshot(everything.graph, trusted=())
    assert files.warnings == []
    assert [node.name for node in files.nodes if not files.is_current(node)] == []
    assert files.pending == 0


# -- data-free -------------------------------------------------------------------------------------

FREE = [
    Call.of("shift", "tail"),
    Call.of("dictionary", "tail"),
    *(Call.of(arm, "tail") for arm in SHIFT_ARMS),
    *(Call.of(arm) for arm in ARMS),
]


@pytest.mark.parametrize("call", FREE, ids=lambda call: call.name)
def test_no_arm_opens_original_data(copy, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise AssertionError("original data was opened")

    monkeypatch.setattr(datasets, "load_split", refuse)
    assert copy.run(call) == 0
    with pytest.raises(AssertionError, match="original data"):  # the guard does guard
        copy.run(Call.of("evaluate", "tail"))


@pytest.mark.parametrize("stage", ["substitute", "dictionary"])
def test_neither_does_the_other_models_pool(copy, monkeypatch, stage):
    def refuse(*args, **kwargs):
        raise AssertionError("original data was opened")

    monkeypatch.setattr(datasets, "load_split", refuse)
    assert copy.run(of_other(stage)) == 0
