import base64
import json
import zlib

from pipelines.tracking.writing.saved_view import TAG


def test_saved_view_shows_what_cells_have(view):
    """Its form is that of MLflow's interface; what it names must be in the store."""
    view.sync(register=False)
    experiment = view.client.get_experiment_by_name("kdci-digits-smoke")
    saved = json.loads(experiment.tags[TAG])
    kind, _, packed = saved["state"].partition(";")
    assert (kind, saved["name"]) == ("deflate", "Arms")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    shown = view.client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.data.tags["kdci.run"] for run in shown} == {"cell"}
    columns = {name.split("`")[1] for name in state["selectedColumns"]}
    compared = [run for run in shown if run.data.tags["kdci.variant"] == "kdci"]
    assert compared and all(columns <= run.data.metrics.keys() for run in compared)
    ((key,),) = [state["groupBy"]["groupByKeys"]]
    assert {run.data.tags[key["groupByData"]] for run in shown} == {
        f"{method}/{arm}" for method in ("fast", "dfnd") for arm in ("vanilla", "kdci")
    }
    # people may change it
    view.client.set_experiment_tag(experiment.experiment_id, TAG, "theirs")
    view.sync(register=False)
    assert view.client.get_experiment_by_name("kdci-digits-smoke").tags[TAG] == "theirs"
