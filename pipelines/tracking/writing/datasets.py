"""Which datasets an execution read: original data by name, pools by their content hash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdci.store.hashing import hash_json
from pipelines.tracking.reading.files import Finished
from pipelines.tracking.reading.snapshot import Snapshot
from pipelines.tracking.writing.record import DatasetUse

_DIGEST_CHARS = 36  # MLflow's limit
_POOL_FACTS = ("num_images", "num_holdout", "confidence")


def datasets_of(finished: Finished, files: Snapshot) -> list[DatasetUse]:
    """Return what the execution behind an artifact read.

    Original data carries no hash of its own: its digest is that of the params that name it.
    """
    uses = list(_pools(finished, files))
    data = finished.params.get("data")
    if finished.node.kind == "teacher":
        facts = finished.card.get("facts", {})
        data = data or {"name": facts.get("dataset", "unknown")}
        # The teacher never sees the test split: which one that is makes no other dataset.
        data = {name: value for name, value in data.items() if name != "test"}
        uses.append(_original(data, "train", "teacher"))
    elif finished.node.kind == "evaluation" and data and data.get("test"):
        uses.append(_original(data, str(data["test"]), "evaluation"))
    return uses


def _original(data: dict[str, Any], split: str, context: str) -> DatasetUse:
    source = str(data.get("path") or data["name"])
    digest = hash_json({**data, "split": split})[:_DIGEST_CHARS]
    return DatasetUse(f"{data['name']}/{split}", digest, context, source, {"split": split})


def _pools(finished: Finished, files: Snapshot) -> Iterator[DatasetUse]:
    scored = finished.node.kind == "evaluation"
    for role, content in finished.parents.items():
        if role == "base" or role.startswith("pool"):
            yield _pool(content, "holdout" if scored else "substitution", files)


def _pool(content: str, context: str, files: Snapshot) -> DatasetUse:
    digest = content[:_DIGEST_CHARS]
    found = files.with_content(content)
    if found is None or found.node.kind != "pool":  # another one lies there by now
        return DatasetUse("pool", digest, context, "replaced since")
    name = "/".join(["pool", *found.node.fields.values()])
    facts = found.card.get("facts", {})
    kept = {fact: facts[fact] for fact in _POOL_FACTS if fact in facts}
    return DatasetUse(name, digest, context, found.artifact, kept)
