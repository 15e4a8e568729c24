"""`kdci export`: which student is meant, and the format that needs MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.errors import UserError
from kdci.store.artifacts import CARD, read_card
from kdci.store.layout import Cell, Layout, all_cells
from pipelines.flow.telemetry import switch_off

if TYPE_CHECKING:
    from kdci.config.params import Params
    from kdci.exporting.formats import Format, Model
    from kdci.exporting.graph import Graph

EXPORTS = "exports"
"""Folder of the project that exports go to."""
MAX_NAMES = 8
"""So many students are named where several are meant; of more, the number is told."""
_HOW = "name one as `kdci export METHOD/VARIANT/poolP-seedS`, or narrow with --method, --variant, "


@dataclass(frozen=True)
class Chosen:
    """A student to export.

    Attributes:
        folder: Of its artifact.
        cell: Which one it is.
    """

    folder: Path
    cell: Cell


def choose(
    params: Params | None,
    layout: Layout | None,
    what: str | None,
    axes: Mapping[str, str | int | None],
) -> Chosen:
    """Return the student that is meant.

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
    if params is None or layout is None:
        fix = "go to the project folder, or give the folder of a student"
        raise UserError(
            what or str(Path.cwd()), "is no student's folder, nor is here a project", fix
        )
    known = list(dict.fromkeys(all_cells(params.grid)))
    meant = [cell for cell in known if _is_meant(cell, what, axes)]
    built = [cell for cell in meant if (layout.student(cell) / CARD).is_file()]
    if len(built) == 1:
        return Chosen(layout.student(built[0]), built[0])
    subject = what or "kdci export"
    if built:
        raise UserError(subject, f"{len(built)} students are there: {_listed(built)}", _how())
    if meant:
        raise UserError(subject, f"not distilled yet: {_listed(meant)}", "run `dvc repro`")
    what_is = "is no student of params.yaml, and no folder of one"
    raise UserError(subject, what_is, f"students are {_listed(known)}")


def _of_folder(folder: Path, axes: Mapping[str, str | int | None]) -> Chosen:
    given = [name for name, value in axes.items() if value is not None]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(option, "does not go with a folder", "leave it out")
    return Chosen(folder, Cell.of(read_card(folder, kind="student")["facts"]))


def _is_meant(cell: Cell, what: str | None, axes: Mapping[str, str | int | None]) -> bool:
    fits = all(value in (None, getattr(cell, name)) for name, value in axes.items())
    return fits and (what is None or _is_part(what.strip("/").split("/"), cell.name.split("/")))


def _is_part(some: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether ``some`` are among ``names`` in the same order."""
    rest = iter(names)
    return all(any(part == name for name in rest) for part in some)


def _how() -> str:
    others = [f"--{each.name.replace('_', '-')}" for each in fields(Cell)]
    rest = [option for option in others if option not in ("--method", "--variant")]
    return f"{_HOW}{', '.join(rest)}"


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


def _prepare_mlflow() -> None:
    """Switch off what MLflow would tell others, and the loading of pickles; before its import."""
    switch_off()
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")


def _write_mlflow(graph: Graph, path: Path) -> dict[str, Any]:
    from importlib.metadata import version

    from pipelines.tracking.export import save_model

    _prepare_mlflow()
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
