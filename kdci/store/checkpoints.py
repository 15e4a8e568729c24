"""Resume checkpoints without pickle: tensors as safetensors, everything else as JSON.

A state is a nest of dicts and lists of tensors, numbers, strings, booleans and None; dict keys
may be strings or integers (optimisers use both). The JSON half is written last and carries the
SHA-256 of both, so a checkpoint exists when its JSON does. The newest two are kept: a damaged
one costs the steps since the one before it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdci.errors import IntegrityError
from kdci.store.artifacts import parse_tensors, replace_file, storage_errors
from kdci.store.hashing import hash_file, hash_json

State = dict[str, Any]
_log = logging.getLogger(__name__)


def pack(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split ``state`` into its tensors and a JSON tree that refers to them by name.

    Raises:
        TypeError: It holds something else than the types named above.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            name = f"{len(tensors)}:{path}"  # numbered: the keys 0 and "0", or "a/b", read alike
            tensors[name] = node
            return {"tensor": name}
        if isinstance(node, dict):
            return {"items": [[key, walk(value, f"{path}/{key}")] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {"list": [walk(value, f"{path}/{i}") for i, value in enumerate(node)]}
        if node is None or isinstance(node, bool | int | float | str):
            return {"value": node}
        raise TypeError(f"{path}: a checkpoint can not hold a {type(node).__name__}")

    tree = walk(state, "state")
    return tensors, tree


def unpack(tensors: dict[str, Tensor], tree: Any) -> Any:
    """Rebuild what ``pack`` split; tuples come back as lists."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unpack(tensors, value) for key, value in content}
    if kind == "list":
        return [unpack(tensors, value) for value in content]
    return content


def save_state(path: Path, state: State) -> None:
    """Write ``state`` as ``path``.safetensors and, last, ``path``.json.

    Raises:
        StorageError: The disk is full or not writable; earlier states are untouched.
    """
    from safetensors.torch import save

    tensors, tree = pack(state)
    # Clones: a state may hold views of one storage, or channels-last ones; safetensors takes none.
    plain = torch.contiguous_format
    data = save({n: t.detach().cpu().clone(memory_format=plain) for n, t in tensors.items()})
    tensor_file = path.with_suffix(".safetensors")
    replace_file(tensor_file, data)
    record = {"tree": tree, "sha256": hash_file(tensor_file)}
    record["record_sha256"] = hash_json(record)
    replace_file(path.with_suffix(".json"), json.dumps(record).encode())


def load_state(path: Path) -> State:
    """Read what ``save_state`` wrote.

    Raises:
        IntegrityError: A file is missing, damaged or changed.
    """
    tensor_file = path.with_suffix(".safetensors")
    record_file = path.with_suffix(".json")
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        stated = record.pop("record_sha256")
        whole = stated == hash_json(record) and record["sha256"] == hash_file(tensor_file)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise IntegrityError(str(path), "is a damaged state", "it is left out")
    state: State = unpack(parse_tensors(tensor_file.read_bytes(), tensor_file), record["tree"])
    return state


class Checkpoints:
    """The newest states of one run, in a folder of its own."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: State) -> None:
        """Write the state at ``step`` and drop the oldest beyond ``keep``."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        save_state(self._path(step), state)
        steps = self._steps()
        # A state of a later step is one that load_newest passed over.
        earlier, later = [s for s in steps if s <= step], [s for s in steps if s > step]
        for old in [*earlier[: -self.keep], *later]:
            self._path(old).with_suffix(".json").unlink(missing_ok=True)
            self._path(old).with_suffix(".safetensors").unlink(missing_ok=True)

    def load_newest(self) -> State | None:
        """Return the newest whole state, or None; damaged ones are passed over with a warning."""
        for step in reversed(self._steps()):
            try:
                return load_state(self._path(step))
            except IntegrityError as error:
                _log.warning("kdci: warning: %s; falling back to an earlier one", error)
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:09d}"

    def _steps(self) -> list[int]:
        return sorted(
            int(file.stem.split("-")[1]) for file in self.folder.glob("checkpoint-*.json")
        )
