"""`kdci export`: which student is meant, and the format that needs MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.errors import UserError
from kdci.store.artifacts import CARD, read_card
from kdci.store.layout import Cell, Layout, all_cells

if TYPE_CHECKING:
    from kdci.config.params import Params
    from kdci.exporting.formats import Format, Model
    from kdci.exporting.graph import Graph

EXPORTS = "exports"
"""Folder of the project that exports go to."""
MAX_NAMES = 8
"""So many students are named where several are meant; of more, the number is told."""
_HOW = (
    "name one as `kdci export METHOD/VARIANT/poolP-seedS`, or narrow with --method, --variant, "
    "--teacher, --student, --pool-seed, --seed"
)


def choose(
    params: Params | None,
    layout: Layout | None,
    what: str | None,
    axes: Mapping[str, str | int | None],
) -> tuple[Path, Cell]:
    """Return the student that is meant: the folder of its artifact, and its cell.

    Args:
        params: Of the project; None, as ``layout``: there is none, ``what`` is a folder.
        layout: Where its students are.
        what: Folder of a student, its cell's name, or parts of that name, in order, by `/`; None:
            the only one there is.
        axes: Values of a cell's fields that it must have; None: any.

    Raises:
        UserError: No student is meant, or several are.
        IntegrityError: Its card is damaged.
    """
    if what is not None and (Path(what) / CARD).is_file():
        return _of_folder(Path(what), axes)
    assert params is not None and layout is not None
    known = list(dict.fromkeys(all_cells(params.grid)))
    parts = what.strip("/").split("/") if what is not None else []
    meant = [
        cell
        for cell in known
        if all(value in (None, getattr(cell, name)) for name, value in axes.items())
        and _is_part(parts, cell.name.split("/"))
    ]
    built = [cell for cell in meant if (layout.student(cell) / CARD).is_file()]
    if len(built) == 1:
        return layout.student(built[0]), built[0]
    subject = what or "kdci export"
    if built:
        raise UserError(subject, f"{len(built)} students are there: {_listed(built)}", _HOW)
    if meant:
        raise UserError(subject, f"not distilled yet: {_listed(meant)}", "run `dvc repro`")
    what_is = "is no student of params.yaml, and no folder of one"
    raise UserError(subject, what_is, f"students are {_listed(known)}")


def _of_folder(folder: Path, axes: Mapping[str, str | int | None]) -> tuple[Path, Cell]:
    given = [name for name, value in axes.items() if value is not None]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(option, "does not go with a folder", "leave it out")
    return folder, Cell.of(read_card(folder, kind="student")["facts"])


def _is_part(some: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether ``some`` are among ``names`` in the same order."""
    rest = iter(names)
    return all(any(part == name for name in rest) for part in some)


def _listed(chosen: Sequence[Cell]) -> str:
    told = ", ".join(cell.name for cell in chosen[:MAX_NAMES])
    rest = len(chosen) - MAX_NAMES
    return told + (f" and {rest} more" if rest > 0 else "")


def default_form(params: Params | None, folder: Path) -> str:
    """Return what a student answers with where nobody has said: as its evaluation does.

    Raises:
        KdciError: There is no such student, or its card is damaged.
    """
    facts = read_card(folder, kind="student")["facts"]
    if params is None or facts["compensation"] is None:
        return "backbone"
    return str(params.evaluate.deploy)


def chosen_formats(names: str) -> list[Format]:
    """Return the formats that a list like `pt2,onnx` names, each once.

    Raises:
        UserError: One is unknown, or needs what is not installed.
    """
    from kdci.exporting.formats import ONNX, PT2, Format, require_packages

    mlflow = Format("mlflow", "mlflow", _write_mlflow, _load_mlflow)
    known = {each.name: each for each in (PT2, ONNX, mlflow)}
    asked = dict.fromkeys(name.strip() for name in names.split(","))
    for name in asked:
        if name not in known:
            raise UserError("--formats", f"unknown format {name!r}", f"of {','.join(known)}")
    found = [known[name] for name in asked]
    require_packages(found)
    return found


def _write_mlflow(graph: Graph, path: Path) -> dict[str, Any]:
    from importlib.metadata import version

    from pipelines.tracking.export import save_model
    from pipelines.tracking.writing.store import prepare_mlflow

    prepare_mlflow()
    save_model(graph, path, subject=path.name)
    return {"mlflow": version("mlflow")}


def _load_mlflow(path: Path) -> Model:
    import mlflow.pyfunc
    import torch
    from torch import Tensor

    model = mlflow.pyfunc.load_model(str(path))  # what a server loads

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(model.predict(images.numpy()))

    return run
