import hashlib
import json

import pytest
from ruamel.yaml import YAML

from kdci.graph.build import graph_of
from kdci.store.artifacts import read_card
from pipelines.running import journal

WRN = "wrn-10-1"
STAGE = f"distill@{WRN}-{WRN}-fast-kdci-0-0"
LINKS = {
    "prefect.flow_run_id": "0192f0c1-1111",
    "prefect.flow_run_url": "http://127.0.0.1:4200/runs/flow-run/0192f0c1-1111",
}


def student_of(view):
    return graph_of(view.params, view.root).nodes[STAGE]


def executed(view, outcome, links, *, card=None, runner="prefect"):
    node = student_of(view)
    card = read_card(node.artifact, kind=node.kind)["card_sha256"] if card is None else card
    line = journal.Execution(STAGE, outcome, runner, 1000.0, 5.0, 0, card, links)
    journal.append(view.layout, line)


def lock(view, md5="aa" * 16 + ".dir", **out):
    path = view.layout.relative(student_of(view).artifact)
    entry = {
        "cmd": "python",
        "deps": [{"path": "kdci/training/losses.py", "hash": "md5", "md5": "bb" * 16, "size": 3}],
        "outs": [{"path": path, "hash": "md5", "md5": md5, **out}],
    }
    tree = {"schema": "2.0", "stages": {STAGE: entry}}
    with (view.root / "dvc.lock").open("w") as file:
        YAML(typ="safe", pure=True).dump(tree, file)


def listing(view, md5, card):
    file = view.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"relpath": "card.json", "md5": card}, {"relpath": "x", "md5": "cc" * 16}]
    file.write_text(json.dumps(entries))


def tags(view):
    view.sync(register=False)
    return view.run(STAGE).data.tags


@pytest.mark.slow
def test_runners_links_are_tags_of_the_run_and_its_cell(view):
    assert "kdci.runner" not in tags(view)
    executed(view, "failed", {"prefect.flow_run_id": "failed"}, card="")
    executed(view, "completed", LINKS)
    executed(view, "restored", {"prefect.flow_run_id": "later"})
    found = tags(view)
    assert LINKS.items() <= found.items()
    assert found["kdci.runner"] == "prefect"
    cell = next(run for run in view.runs if run.data.tags.get("kdci.arm") == "fast/kdci")
    assert LINKS.items() <= cell.data.tags.items()
    before = view.state()
    assert view.sync(register=False).created == 0
    assert view.state() == before


def test_ray_trial_of_a_grid_sweep_is_a_tag(view):
    links = {"ray.trial_id": "ab12_00001", "ray.experiment": "grid"}
    executed(view, "completed", links, runner="ray")
    assert links.items() <= tags(view).items()


def test_hashes_of_dvc_are_those_of_the_artifact_that_is_there(view):
    card = hashlib.md5((student_of(view).artifact / "card.json").read_bytes()).hexdigest()
    md5 = "ad" * 16 + ".dir"
    lock(view, md5)
    assert "dvc.out_md5" not in tags(view)  # nothing says that this entry is about it
    listing(view, md5, "00" * 16)
    lock(view, md5, note="about another card")
    assert "dvc.out_md5" not in tags(view)
    listing(view, md5, card)
    lock(view, md5, note="about this one")
    found = tags(view)
    assert found["dvc.out_md5"] == md5
    deps = hashlib.md5(("kdci/training/losses.py:" + "bb" * 16).encode()).hexdigest()
    assert found["dvc.deps_md5"] == deps


def test_without_dvcs_cache_size_and_age_tell(view):
    files = [file for file in student_of(view).artifact.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    lock(view, size=size + 1, nfiles=len(files))
    assert "dvc.out_md5" not in tags(view)
    lock(view, size=size, nfiles=len(files))
    assert tags(view)["dvc.out_md5"] == "aa" * 16 + ".dir"


def test_damaged_journal_and_lock_tell_nothing(view):
    (view.layout.work).mkdir(exist_ok=True)
    (view.layout.work / "journal.jsonl").write_text('{"stage": 1}\nno json\n')
    (view.root / "dvc.lock").write_text("stages: [unclosed")
    assert "kdci.runner" not in tags(view)


def test_datasets_are_inputs_of_the_runs_that_read_them(view):
    view.sync(register=False)

    def inputs(stage):
        return {
            (one.tags[0].value, one.dataset.name): one.dataset
            for one in view.run(stage).inputs.dataset_inputs
        }

    assert set(inputs(f"teacher@{WRN}")) == {("teacher", "digits/train")}
    pool = ("substitution", f"pool/{WRN}/fast/0")
    assert set(inputs(STAGE)) == set(inputs(f"dictionary@{WRN}-fast-0")) == {pool}
    assert set(inputs(f"evaluate@{WRN}-{WRN}-fast")) == {
        ("evaluation", "digits/test"),
        ("holdout", pool[1]),
    }
    dataset = inputs(STAGE)[pool]
    place = view.layout.pool(WRN, "fast", 0)
    card = json.loads((place / "card.json").read_text())
    assert card["content"].startswith(dataset.digest) and len(dataset.digest) >= 32
    assert json.loads(dataset.source) == {"uri": place.relative_to(view.root).as_posix()}
    assert json.loads(dataset.profile)["num_images"] == card["facts"]["num_images"]
