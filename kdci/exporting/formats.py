"""The files that a traced student is written to, and how each of them is read again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdci.errors import CombinedUserError, UserError
from kdci.exporting.graph import Graph

Model = Callable[[Tensor], Tensor]
"""float32 images (N, C, H, W) in [0, 1] to logits (N, K)."""
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
"""Names in the ONNX graph: of its input, its output, and the input's first dimension."""


@dataclass(frozen=True)
class Format:
    """A way to write a student.

    Attributes:
        name: As `--formats` has it.
        place: File or folder of an export.
        write: Writes a traced student there, and returns what there is to record of it.
        load: Reads it again.
        packages: What it needs beyond torch; `kdci[export]` brings them.
    """

    name: str
    place: str
    write: Callable[[Graph, Path], dict[str, Any]]
    load: Callable[[Path], Model]
    packages: tuple[str, ...] = ()


def require_packages(formats: Sequence[Format]) -> None:
    """Check that what the formats need is installed.

    Raises:
        CombinedUserError: Something is not.
    """
    problems = []
    for each in formats:
        missing = [name for name in each.packages if importlib.util.find_spec(name) is None]
        if missing:
            what = f"{each.name} needs {' and '.join(missing)}"
            fix = f"pip install 'kdci[export]', or leave {each.name} out"
            problems.append(UserError("--formats", what, fix))
    if problems:
        raise CombinedUserError(problems)


def _write_pt2(graph: Graph, path: Path) -> dict[str, Any]:
    torch.export.save(graph.program, path)
    return {"torch": version("torch")}


def _load_pt2(path: Path) -> Model:
    # Its own file, written a moment ago: what a stranger gives is not loaded here.
    module: Model = torch.export.load(path).module()
    return module


def _write_onnx(graph: Graph, path: Path) -> dict[str, Any]:
    exported = torch.onnx.export(
        graph.program,
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: BATCH},),
        verbose=False,
    )
    assert exported is not None
    model = exported.model
    for node in model.graph:
        node.metadata_props.clear()  # stack traces of this machine
    exported.save(path)  # one file; above 2 GB, what ONNX can not hold goes to a second one
    return {"opset": model.opset_imports[""], "onnx": version("onnx")}


def _load_onnx(path: Path) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


PT2 = Format("pt2", "model.pt2", _write_pt2, _load_pt2)
ONNX = Format("onnx", "model.onnx", _write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime"))
