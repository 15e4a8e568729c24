import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from kdci.errors import UserError
from kdci.models.students import load_student
from kdci.store.layout import cells
from pipelines import tracking
from pipelines.tracking import models

WRN = "wrn-10-1"
PICKLES = (".pkl", ".pickle", ".pth", ".pt", ".bin", ".joblib")


def aliases(view, name):
    found = view.client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


@pytest.mark.slow
def test_registry_holds_dictionaries_and_one_student_of_each_arm(view, monkeypatch):
    import mlflow

    assert view.sync(register=False).versions == 0
    with monkeypatch.context() as at_work:  # exports would take time from a stage
        at_work.setattr("pipelines.tracking.reading.snapshot.Snapshot.running", 1)
        assert view.sync().versions == 0
    first = view.sync()
    assert first.warnings == ()
    assert first.versions == 6  # two methods: a dictionary, vanilla and KDCI each
    names = sorted(model.name for model in view.client.search_registered_models())
    students = [f"kdci-digits-smoke-{WRN}-{WRN}-{method}" for method in ("dfnd", "fast")]
    assert names == sorted(
        [*students, *(f"kdci-digits-smoke-{WRN}-{m}-dictionary" for m in ("dfnd", "fast"))]
    )
    assert aliases(view, students[0]) == {"vanilla": "1", "kdci": "2"}
    dictionary = names[names.index(students[0]) - 1]
    assert aliases(view, dictionary) == {"current": "1", "pool0": "1"}

    # the version is the student of the first seed, and says where it came from
    cell = next(c for c in cells(view.params.grid) if (c.method, c.variant) == ("fast", "kdci"))
    path = view.layout.student(cell)
    version = view.client.get_model_version_by_alias(students[1], "kdci")
    run = view.run(f"distill@{WRN}-{WRN}-fast-kdci-0-0")
    card = json.loads((path / "card.json").read_text())
    assert version.run_id == run.info.run_id
    assert version.source == f"runs:/{run.info.run_id}/model"
    assert version.tags["kdci.content"] == card["content"]
    assert version.tags["kdci.card_sha256"] == card["card_sha256"]
    assert version.tags["git.commit"] == card["code"]["revision"]
    assert version.tags["kdci.cell"] == cell.name
    assert float(version.tags["accuracy"]) == pytest.approx(accuracy_of(view, cell), abs=1e-3)

    # it answers as the eager student, for any batch size
    mlflow.set_tracking_uri(view.uri)
    loaded = mlflow.pytorch.load_model(f"models:/{students[1]}@kdci")
    eager = load_student(path)
    for size in (1, 7):
        images = torch.rand(size, 1, 16, 16, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            assert (loaded(images) - eager(images)).abs().max() < 1e-5

    served = mlflow.pyfunc.load_model(f"models:/{students[1]}@kdci").predict(images.numpy())
    assert abs(torch.from_numpy(served) - eager(images)).max() < 1e-5
    no_pickle_in(run)

    # a second sync adds nothing
    before = view.state()
    again = view.sync()
    assert (again.created, again.points, again.versions) == (0, 0, 0)
    assert view.state() == before


def no_pickle_in(run):
    """Look through the artifacts of the run's whole experiment."""
    folder = Path(urlsplit(run.info.artifact_uri).path).parents[1]
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".pt2", ".safetensors", ".json"}
    assert not [file for file in files if file.suffix in PICKLES]
    flavors = (file.read_text() for file in files if file.name == "MLmodel")
    assert all("model.pth" not in text for text in flavors)


def accuracy_of(view, cell):
    place = view.layout.evaluation(cell.teacher, cell.student, cell.method)
    rows = json.loads((place / "cells.json").read_text())
    return next(row["accuracy"] for row in rows if row["variant"] == cell.variant)


@pytest.mark.slow
def test_new_student_is_a_new_version_and_the_champion_is_whom_people_say(view, built, call):
    built.edit(grid__methods=["fast"])
    view.sync()
    name = f"kdci-digits-smoke-{WRN}-{WRN}-fast"
    vanilla, kdci = (
        next(c for c in cells(view.params.grid) if c.variant == arm) for arm in ("vanilla", "kdci")
    )
    chosen = tracking.set_champion(view.layout, view.params, vanilla.name)
    assert chosen == (name, "1")
    assert aliases(view, name) == {"vanilla": "1", "kdci": "2", "champion": "1"}
    with pytest.raises(UserError, match="is no cell"):
        tracking.set_champion(view.layout, view.params, "nobody")

    built.edit(compensation__hidden_dim=8).build(call("kdci"), call("evaluate"))
    assert view.sync().versions == 1
    assert aliases(view, name) == {"vanilla": "1", "kdci": "3", "champion": "1"}
    # with the module in the deployed form it is another model of the same student
    built.edit(evaluate__deploy="compensated").build(call("evaluate"))
    assert view.sync().versions == 1
    assert aliases(view, name) == {"vanilla": "1", "kdci": "4", "champion": "1"}
    import mlflow

    mlflow.set_tracking_uri(view.uri)
    loaded = mlflow.pytorch.load_model(f"models:/{name}@kdci")
    eager = load_student(view.layout.student(kdci), deploy="compensated")
    images = torch.rand(7, 1, 16, 16)
    with torch.no_grad():
        assert (loaded(images) - eager(images)).abs().max() < 1e-5
        assert (eager.backbone(images).logits - eager(images)).abs().max() > 0
    # a student that went, or was made with other params, stands for nothing
    shutil.rmtree(view.layout.student(kdci))
    assert view.sync().versions == 0
    with pytest.raises(UserError, match="has no student"):
        tracking.set_champion(view.layout, view.params, kdci.name)


@pytest.mark.slow
def test_exports_are_bounded_in_time_and_one_that_fails_is_told_once(view, monkeypatch):
    monkeypatch.setattr(models, "SECONDS", 0.0)
    first = view.sync()
    assert first.versions == 2  # dictionaries cost nothing
    assert any(re.match("4 students wait", text) for text in first.warnings)
    monkeypatch.setattr(models, "SECONDS", 60.0)

    def refuse(*args, **kwargs):
        raise ValueError("this model branches on its data\nand more lines")

    monkeypatch.setattr("mlflow.pytorch.save_model", refuse)
    second = view.sync()
    assert len(second.warnings) == 4
    assert all(text.endswith("this model branches on its data") for text in second.warnings)
    assert view.sync().warnings == ()
