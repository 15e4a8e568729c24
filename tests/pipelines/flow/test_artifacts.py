"""What a run shows in Prefect's UI says what the files say. The rest is in test_reproduce.py."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from pipelines.flow.artifacts import _key, publish, publish_links, publish_results
from tests.conftest import Project

Shown = dict[str, dict[str, Any]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What is sent to the server, by key."""
    import prefect.artifacts

    sent: Shown = {}

    def keep(*, key: str, **content: Any) -> None:
        sent[key] = content

    for kind in ("image", "markdown", "table"):
        monkeypatch.setattr(prefect.artifacts, f"create_{kind}_artifact", keep)
    return sent


def test_a_pool_is_shown_as_a_picture(smoke_project: Project, shown: Shown) -> None:
    node = smoke_project.graph.nodes["substitute@wrn-10-1-fast-0"]
    publish(node, smoke_project.params, smoke_project.layout)
    (content,) = shown.values()
    assert list(shown) == ["kdci-pool-substitute-wrn-10-1-fast-0"]
    head, _, data = content["image_url"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 1  # not an empty figure
    facts = json.loads((node.artifact / "card.json").read_text())["facts"]
    assert f": {facts['num_images']} in all, " in content["description"]


def test_a_dictionary_is_shown_as_its_proportions(smoke_project: Project, shown: Shown) -> None:
    node = smoke_project.graph.nodes["dictionary@wrn-10-1-dfnd-0"]
    publish(node, smoke_project.params, smoke_project.layout)
    content = shown["kdci-dictionary-dictionary-wrn-10-1-dfnd-0"]
    tensors = load_file(node.artifact / "dictionary.safetensors")
    proportions = 100 * tensors["proportions"].astype(float)
    rows = content["table"]
    shares = [row["P(z), %"] for row in rows]
    assert sorted(row["prototype"] for row in rows) == list(range(len(proportions)))
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.005 * len(shares) + 1e-9)
    for row in rows:
        assert row["P(z), %"] == pytest.approx(proportions[row["prototype"]], abs=0.005)
        assert row["top class"] in smoke_project.params.data.spec.class_names
    facts = json.loads((node.artifact / "card.json").read_text())["facts"]
    assert f"N = {len(rows)} prototypes in logits" in content["description"]
    assert f"of {facts['num_predictions']} predictions" in content["description"]


@pytest.mark.parametrize("stage", ["teacher@wrn-10-1", "evaluate@wrn-10-1-wrn-10-1-fast"])
def test_what_is_not_looked_at_is_not_shown(
    smoke_project: Project, shown: Shown, stage: str
) -> None:
    publish(smoke_project.graph.nodes[stage], smoke_project.params, smoke_project.layout)
    assert shown == {}


def test_results_are_the_table_that_the_terminal_shows(built: Project, shown: Shown) -> None:
    from kdci.reporting.results import load_rows
    from kdci.reporting.text.tables import terminal_table

    publish_results(built.layout)
    table = terminal_table(load_rows(built.root / "report/results.json"))
    assert shown["kdci-results-digits-smoke"]["markdown"] == f"```\n{table}\n```"


def test_results_of_another_preset_are_not_shown_as_this_ones(built: Project, shown: Shown) -> None:
    publish_results(type(built.layout)(built.root, "another"))
    (built.root / "report/results.json").unlink()
    publish_results(built.layout)
    assert shown == {}


def test_links_are_links_where_mlflow_has_an_address(built: Project, shown: Shown) -> None:
    run = "http://127.0.0.1:5000/#/experiments/1/runs/abc"
    publish_links(built.layout, "http://127.0.0.1:5000", {"teacher@wrn-10-1": run})
    text = shown["kdci-mlflow-digits-smoke"]["markdown"]
    assert f"| teacher@wrn-10-1 | [abc]({run}) |" in text
    assert "MLflow: [127.0.0.1:5000](http://127.0.0.1:5000)" in text

    publish_links(built.layout, "mlflow ui", {"teacher@wrn-10-1": "abc"})
    text = shown["kdci-mlflow-digits-smoke"]["markdown"]
    assert "MLflow: `mlflow ui`" in text
    assert "| teacher@wrn-10-1 | `abc` |" in text


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("distill@a-b-kdci-0", "kdci-pool-distill-a-b-kdci-0"),
        ("Table 4: w/o P(z)", "kdci-pool-table-4-w-o-p-z"),
    ],
)
def test_keys_are_what_prefect_takes(name: str, key: str) -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    assert _key("pool", name) == key
    assert ArtifactCreate(key=key, type="markdown", data="").key == key
