"""What a stage says to bad input: one line per problem, an exit code, and nothing written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kdci.graph.cells import renew_cells
from kdci.store.hashing import hash_file, hash_json
from tests.conftest import Call
from tests.project_code import ROOT

MODULES = ("teacher", "substitute", "dictionary", "distill", "evaluate", "report")


@pytest.fixture
def refused(built, capsys):
    """Return a function that runs a stage which must be refused and gives its one line."""

    def run(call, code):
        before = built.files()
        capsys.readouterr()
        assert built.run(call) == code
        assert built.files() == before
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if not re.match(r"\w+@\S+ \w+ing \d", line)]
        assert len(lines) == 1, err
        assert lines[0].startswith("kdci: error: ")
        return lines[0]

    return run


# -- params (R17) ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "named", "said"),
    [
        ("compensation__lambada", "learned", "compensation.lambada", "did you mean 'lambda'"),
        ("recipes__fast__learning_rate", "fast", "recipes.fast.learning_rate", "number"),
        ("recipes__fast__num_epochs", 1.5, "recipes.fast.num_epochs", "integer"),
        ("recipes__fast__batch_size", True, "recipes.fast.batch_size", "integer"),
        ("pool__holdout", 0.75, "pool.holdout", "0.5"),
        ("teacher__learning_rate", float("nan"), "teacher.learning_rate", "finite"),
        ("grid__methods", ["fast", "fsat"], "grid.methods", "did you mean 'fast'"),
        ("grid__seeds", [0, 0], "grid.seeds", "twice"),
        ("data__path", "/data", "data.path", "takes no path"),
    ],
)
def test_bad_param_is_named_with_its_key(built, call, refused, key, value, named, said):
    built.edit(**{key: value})
    line = refused(call("kdci"), 2)
    assert line.startswith(f"kdci: error: {named}")
    assert said in line


def test_every_bad_param_gets_its_line(built, call, capsys):
    built.edit(pool__holdout=2, distill__num_snapshots=0, evaluate__deploy="both")
    assert built.run(call("teacher")) == 2
    lines = capsys.readouterr().err.splitlines()
    keys = sorted(line.split(": ")[2] for line in lines)
    assert keys == ["distill.num_snapshots", "evaluate.deploy", "pool.holdout"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("preset: digits-smoke", "preset: a\npreset: b", "preset"),
        ("  num_snapshots: 2", "\tnum_snapshots: 2", "line"),
        ("preset: digits-smoke", "preset: &a digits-smoke\nteacher: *a", "alias"),
    ],
    ids=["duplicate key", "tab", "alias"],
)
def test_bad_yaml_is_refused(built, call, refused, old, new, said):
    file = built.root / "params.yaml"
    preset = ROOT / "pipelines/presets/digits-smoke.yaml"
    text = preset.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert said in refused(call("teacher"), 2)


def test_missing_params_file_is_refused(fresh, call, capsys):
    (fresh.root / "params.yaml").unlink()
    assert fresh.run(call("teacher")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "params.yaml" in line


@pytest.mark.parametrize(
    ("stage", "method", "seed"), [("substitute", "dafl", 0), ("kdci", "fast", 7)]
)
def test_cell_outside_the_grid_is_refused(call, refused, stage, method, seed):
    this = call(stage, method, seed)
    line = refused(this, 2)
    assert line.startswith(f"kdci: error: {this.cell}: is no cell of `{this.stage}`")
    assert "wrn-10-1-" in line.partition("see cells.yaml")[2]


@pytest.mark.parametrize("cell", ["a b", "$(touch x)", "a;b", "../up", "-flag", ".hidden", "a/b"])
def test_what_is_no_name_is_refused_before_anything_is_read(fresh, capsys, cell):
    (fresh.root / "params.yaml").unlink()
    arguments = [] if not cell.startswith("-") else ["--"]
    assert fresh.run(Call("distill", ""), *arguments, cell) == 2
    assert "is no cell's name" in capsys.readouterr().err


def test_under_dvc_a_cell_that_cells_yaml_tells_otherwise_is_refused(built, call, monkeypatch):
    """What DVC recorded would be of another cell than ran."""
    monkeypatch.setenv("DVC_STAGE", "x")
    this = call("kdci")
    assert built.run(this) == 2  # there is no such file
    renew_cells(built.graph)
    assert built.run(this) == 0
    file = built.root / "cells.yaml"
    code = built.node(this).code.name
    for place in (f'"{code}": "', f'"{this.cell}": {{"code": "'):
        text = file.read_text()
        assert place in text
        file.write_text(text.replace(place, place + "0"))
        assert built.run(this) == 2
        file.write_text(text)


def test_params_are_refused_before_torch_is_loaded(built):
    """Under a second, that is; a stub in the place of torch shows it without a clock."""
    built.edit(compensation__lambada="learned")
    program = f"""
import importlib, sys
sys.modules["torch"] = None
from stages.main import main
codes = []
for name in {MODULES!r}:
    importlib.import_module("stages." + name)
    cell = [] if name == "report" else ["x"]
    codes.append(main(name, print, ["--params", {str(built.root / "params.yaml")!r}, *cell]))
sys.exit(int(set(codes) != {{2}}))
"""
    root = ROOT
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compensation.lambada") == len(MODULES)


# -- data (R18) -----------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "files at the root"])
@pytest.mark.parametrize("stage", ["teacher", "evaluate"])
def test_dataset_that_is_not_there_is_refused(
    built, call, refused, monkeypatch, tmp_path, stage, there
):
    folder = tmp_path / "data"
    if there != "nothing":
        folder.mkdir()
    if there == "files at the root":
        (folder / "cat.png").write_bytes(b"")
    built.edit(data__name="cifar10", data__path=str(folder))
    if stage == "evaluate":  # the shared teacher is one of digits; only the data is at stake
        monkeypatch.setattr("kdci.models.networks.Networks.teacher", lambda *args: None)
    line = refused(call(stage), 2)
    assert str(folder) in line


# -- teachers that do not fit (R19) -----------------------------------------------------------


def forge(path, **facts):
    """Change facts of an artifact as an honest stage would have written them."""
    card = json.loads((path / "card.json").read_text())
    del card["card_sha256"]
    card["facts"].update(facts)
    for name in card["files"]:
        file = path / name
        entry = {"sha256": hash_file(file), "bytes": file.stat().st_size}
        card["files"][name] = entry
    card["content"] = hash_json(card["files"])
    card["card_sha256"] = hash_json(card)
    (path / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize("stage", ["substitute", "dictionary", "kdci", "evaluate"])
@pytest.mark.parametrize(("fact", "value"), [("num_classes", 7), ("channels", 3)])
def test_teacher_of_another_dataset_is_refused(built, call, refused, stage, fact, value):
    forge(built.layout.teacher("wrn-10-1"), **{fact: value})
    line = refused(call(stage), 2)
    assert f"{value} {fact}" in line


@pytest.fixture
def plain_teacher(built, monkeypatch):
    """Put a teacher without BatchNorm in the place of the built one."""
    from torch import nn

    from kdci import models

    class Plain(nn.Module):
        def __init__(self, num_classes, channels):
            super().__init__()
            self.head = nn.Linear(channels * 256, num_classes)

        def forward(self, images):
            features = images.flatten(1)
            return models.Prediction(self.head(features), features)

    monkeypatch.setitem(models.BACKBONES, "wrn-10-1", Plain)
    teacher = built.layout.teacher("wrn-10-1")
    model = models.PixelModel(Plain(10, 1), mean=(0.3,), std=(0.3,))
    save_file(model.state_dict(), teacher / "model.safetensors")
    forge(teacher)


@pytest.mark.usefixtures("plain_teacher")
@pytest.mark.parametrize("stage", ["substitute", "kdci"])
def test_teacher_without_batch_norm_is_refused_by_fast(call, refused, stage):
    line = refused(call(stage), 2)
    assert line.startswith("kdci: error: methods.fast: ")
    assert "BatchNorm" in line


@pytest.mark.usefixtures("plain_teacher")
def test_dfnd_takes_a_teacher_without_batch_norm(built, call):
    built.build(call("substitute", "dfnd"), call("kdci", "dfnd"))


def test_teacher_with_nan_weights_is_refused(built, call, refused):
    teacher = built.layout.teacher("wrn-10-1")
    tensors = load_file(teacher / "model.safetensors")
    next(t for t in tensors.values() if t.is_floating_point()).flatten()[0] = float("nan")
    save_file(tensors, teacher / "model.safetensors")
    forge(teacher)
    assert "not finite" in refused(call("substitute"), 5)


def test_teacher_of_another_backbone_is_refused(built, call, refused):
    forge(built.layout.teacher("wrn-10-1"), backbone="wrn-16-1")
    refused(call("substitute"), 3)


def test_more_prototypes_than_images_are_refused(built, call, refused):
    built.edit(dictionary__num_prototypes=31)  # of 30 images
    line = refused(call("dictionary"), 2)
    assert line.startswith("kdci: error: dictionary.num_prototypes: 31 clusters of 30")


def test_larger_choice_than_the_open_world_is_refused(built, call, refused):
    built.edit(methods__dfnd__num_selected=201)
    line = refused(call("substitute", "dfnd"), 2)
    assert line.startswith("kdci: error: methods.dfnd.num_selected: ")


@pytest.mark.parametrize(
    ("stage", "parent"),
    [
        ("substitute", "teachers/wrn-10-1"),
        ("dictionary", "pools/wrn-10-1/fast/pool0"),
        ("vanilla", "pools/wrn-10-1/fast/pool0"),
        ("kdci", "dictionaries/wrn-10-1/fast/pool0"),
        ("evaluate", "students/wrn-10-1/wrn-10-1/fast/vanilla/pool0-seed0"),
    ],
)
def test_missing_parent_is_refused(built, call, refused, stage, parent):
    shutil.rmtree(built.layout.artifacts / parent)
    line = refused(call(stage), 2)
    assert parent in line
    assert "dvc repro" in line


# -- damaged artifacts ------------------------------------------------------------------------


class Canary:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def truncate(file, canary):
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file, canary):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


def remove(file, canary):
    file.unlink()


def replace_by_pickle(file, canary):
    file.write_bytes(pickle.dumps(Canary(canary)))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove, replace_by_pickle])
@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("substitute", "teachers/wrn-10-1/model.safetensors"),
        ("dictionary", "pools/wrn-10-1/fast/pool0/images.npy"),
        ("vanilla", "pools/wrn-10-1/fast/pool0/source.safetensors"),
        ("kdci", "dictionaries/wrn-10-1/fast/pool0/dictionary.safetensors"),
        ("evaluate", "students/wrn-10-1/wrn-10-1/fast/kdci/pool0-seed0/compensation.safetensors"),
    ],
)
def test_damaged_parent_is_refused(built, call, refused, tmp_path, stage, file, damage):
    path = built.layout.artifacts / file
    canary = tmp_path / "canary"
    damage(path, canary)
    line = refused(call(stage), 3)
    assert str(path) in line
    assert not canary.exists()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, replace_by_pickle])
def test_damaged_card_is_refused(built, call, refused, tmp_path, damage):
    path = built.layout.teacher("wrn-10-1") / "card.json"
    damage(path, tmp_path / "canary")
    assert str(path) in refused(call("substitute"), 3)
    assert not (tmp_path / "canary").exists()


# -- numbers that are not finite (R9) -----------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "method", "key"),
    [
        ("teacher", "fast", "teacher__learning_rate"),
        ("vanilla", "fast", "recipes__fast__learning_rate"),
        ("kdci", "dfnd", "recipes__dfnd__learning_rate"),
    ],
)
def test_diverging_loss_ends_the_stage(built, call, refused, stage, method, key):
    this = call(stage, method)
    built.edit(**{key: 1e30})
    shutil.rmtree(built.artifact(this))
    line = refused(this, 5)
    assert "learning_rate" in line
    assert not built.artifact(this).exists()


def test_debug_shows_where_it_went_wrong(built, call, capsys):
    built.edit(dictionary__num_prototypes=31)
    assert built.run(call("dictionary"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
