import json

import pytest
from filelock import FileLock

NAME = "fast-kdci-1a2b3c4d"


@pytest.fixture
def search(view):
    folder = view.layout.work / "searches" / NAME
    folder.mkdir(parents=True)
    described = {
        "name": NAME,
        "teacher": "wrn-10-1",
        "student": "wrn-10-1",
        "method": "fast",
        "variant": "kdci",
        "criterion": "agreement",
        "metric": "agreement_backbone",
        "space": {"compensation.scale": "loguniform(0.1, 10)"},
        "preset": view.params.preset,
    }
    (folder / "search.json").write_text(json.dumps(described))
    return folder


def write(search, trial_id, **changes):
    record = {
        "search": NAME,
        "name": f"{NAME}/{trial_id}",
        "trial_id": trial_id,
        "number": 0,
        "suggested": {},
        "criterion": "agreement",
        "values": {"compensation.scale": 0.42},
        "metric": "agreement_backbone",
        "score": None,
        "curve": [],
        "steps": 0,
        "num_steps": 12,
        "status": "running",
        "error": "",
        "stages": ["distill@wrn-10-1-wrn-10-1-fast-kdci-0-0"],
        "started": 1000.0,
        "finished": None,
        "links": {"ray.trial_id": f"ray_{trial_id}", "ray.experiment": NAME},
    }
    file = search / "trials" / trial_id / "trial.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**record, **changes}))


def seen(view):
    view.sync(register=False)
    runs = [run for run in view.runs if run.data.tags.get("kdci.search") == NAME]
    (parent,) = [run for run in runs if run.data.tags["kdci.run"] == "search"]
    trials = {run.info.run_name.split("/")[1]: run for run in runs if run is not parent}
    assert {t.data.tags["mlflow.parentRunId"] for t in trials.values()} == {parent.info.run_id}
    return parent, trials


@pytest.mark.slow
def test_search_is_a_parent_whose_trials_are_followed_to_their_end(view, search):
    lock = view.layout.work / "run.lock"
    write(search, "a", curve=[[6, 50.0]], score=50.0, steps=6)
    with FileLock(lock):
        parent, trials = seen(view)
        assert (parent.info.status, trials["a"].info.status) == ("RUNNING", "RUNNING")
    assert seen(view)[1]["a"].info.status == "KILLED"  # nobody is at it
    curve = [[6, 50.0], [12, 61.5]]
    done = {"status": "complete", "finished": 1100.0}
    write(search, "a", curve=curve, score=61.5, steps=12, **done)
    write(
        search, "b", curve=curve[:1], score=50.0, steps=6, number=1, **{**done, "status": "stopped"}
    )
    write(search, "c", status="failed", error="loss is nan", number=2, finished=1050.0)
    parent, trials = seen(view)
    assert {name: run.info.status for name, run in trials.items()} == {
        "a": "FINISHED",
        "b": "FINISHED",
        "c": "FAILED",
    }
    assert trials["b"].data.tags["kdci.outcome"] == "stopped"
    assert trials["c"].data.tags["kdci.failure"] == "loss is nan"
    best = trials["a"]
    history = view.client.get_metric_history(best.info.run_id, "agreement_backbone")
    assert [[point.step, point.value] for point in history] == curve
    assert best.data.metrics["score"] == 61.5
    assert best.data.params == {"compensation.scale": "0.42"}
    assert best.data.tags["ray.trial_id"] == "ray_a"
    assert best.data.tags["kdci.trial"] == f"{NAME}/a"
    assert best.info.end_time == 1_100_000
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["kdci.best_trial"] == f"{NAME}/a"
    assert parent.data.metrics["best_score"] == 61.5
    assert parent.data.params["space.compensation.scale"] == "loguniform(0.1, 10)"
    before = view.state()
    again = view.sync(register=False)
    assert (again.created, again.points) == (0, 0)
    assert view.state() == before


def test_another_presets_searches_and_damaged_files_are_left_out(view, search):
    write(search, "a", status="complete", score=1.0)
    (search / "trials" / "b").mkdir()
    (search / "trials" / "b" / "trial.json").write_text('{"search"')
    write(search, "c", curve="none")
    assert set(seen(view)[1]) == {"a"}
    described = json.loads((search / "search.json").read_text())
    (search / "search.json").write_text(json.dumps({**described, "preset": "other"}))
    assert view.sync(register=False).created == 0
