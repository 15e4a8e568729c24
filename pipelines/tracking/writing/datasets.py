"""Which datasets an execution read: original data by name, pools by their content hash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kdci.store.hashing import hash_json
from pipelines.tracking.reading.files import Finished
from pipelines.tracking.reading.snapshot import Snapshot

_DIGEST_CHARS = 36  # MLflow's limit
_POOL_FACTS = ("num_images", "num_holdout", "confidence")


def datasets_of(finished: Finished, files: Snapshot) -> Iterator[Any]:
    """Yield what the execution behind an artifact read, as MLflow's ``DatasetInput``.

    Original data carries no hash of its own: its digest is that of the params that name it.
    """
    scored = finished.node.kind == "evaluation"
    for role, content in finished.parents.items():
        if role == "base" or role.startswith("pool"):
            yield _pool(content, "holdout" if scored else "substitution", files)
    data = finished.params.get("data")
    if finished.node.kind == "teacher":
        data = data or {"name": finished.card.get("facts", {}).get("dataset", "unknown")}
        # The teacher never sees the test split: which one that is makes no other dataset.
        data = {name: value for name, value in data.items() if name != "test"}
        yield _original(data, "train", "teacher")
    elif scored and data and data.get("test"):
        yield _original(data, str(data["test"]), "evaluation")


def _original(data: Mapping[str, Any], split: str, context: str) -> Any:
    source = str(data.get("path") or data["name"])
    digest = hash_json({**data, "split": split})
    return _input(f"{data['name']}/{split}", digest, context, source, {"split": split})


def _pool(content: str, context: str, files: Snapshot) -> Any:
    found = files.with_content(content)
    if found is None or found.node.kind != "pool":  # another one lies there by now
        return _input("pool", content, context, "replaced since", {})
    name = "/".join(["pool", *found.node.fields.values()])
    facts = found.card.get("facts", {})
    kept = {fact: facts[fact] for fact in _POOL_FACTS if fact in facts}
    return _input(name, content, context, found.artifact, kept)


def _input(name: str, digest: str, context: str, source: str, facts: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = Dataset(
        name=name,
        digest=digest[:_DIGEST_CHARS],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps(dict(facts)),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
