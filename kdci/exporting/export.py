"""A student, in the form it is deployed in, as a folder: graphs, weights, and a card.

The folder appears whole or not at all, and only after every graph in it has answered as the
student does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdci.config.catalog import spec_of_facts
from kdci.errors import KdciError, UserError
from kdci.exporting.footprint import (
    BATCHES,
    STUDENT,
    TEACHER,
    Footprint,
    Size,
    median_latencies,
    size_of,
)
from kdci.exporting.formats import Format, Model
from kdci.exporting.graph import exporting, require_form, trace
from kdci.exporting.lineage import Lineage, lineage_of
from kdci.exporting.model_card import model_card
from kdci.exporting.parity import differences, parity_inputs, require_parity
from kdci.exporting.release import Release, Terms
from kdci.models.pretrained import load_teacher
from kdci.models.students import Student, student_of
from kdci.store import artifacts
from kdci.store.artifacts import Draft
from kdci.store.hashing import hash_file
from kdci.training.runtime import processor, require_finite, versions

KIND = "export"
CARD_FILE, FACTS_FILE, WEIGHTS_FILE = "README.md", "export.json", "weights.safetensors"


def export_student(
    student: Path,
    folder: Path,
    *,
    deploy: str,
    formats: Sequence[Format],
    terms: Terms | None = None,
    force: bool = False,
) -> Release:
    """Write a student's export.

    Args:
        student: Folder of the artifact.
        folder: Of the export.
        deploy: `backbone` or `compensated`: what it answers with.
        formats: What to write, each once.
        terms: Licences; None: not stated.
        force: Replace an export that is there.

    Returns:
        What was written.

    Raises:
        UserError: There is no student, the form does not fit it, or something else lies at
            ``folder``.
        ExportError: The student has no graph.
        IntegrityError: A file is damaged, or a graph answers otherwise than the student.
        NumericError: A weight is not finite.
        StorageError: The folder can not be written.
    """
    lineage = lineage_of(artifacts.open_artifact(student, kind="student"))
    require_form(lineage.student.facts, deploy, subject=str(student))
    require_place(folder, force=force)
    model = student_of(lineage.student)
    model.deploy = deploy
    require_finite(model, str(student))
    artifacts.remove_leftovers(folder)
    with _no_empty_folders(folder), artifacts.new_artifact(folder, kind=KIND, card={}) as draft:
        recorded = _write_graphs(draft, model, lineage, formats)
        weights = {
            f"{start}{name}": value
            for start, module in _deployed(model).items()
            for name, value in module.state_dict().items()
        }
        draft.save_tensors(WEIGHTS_FILE, weights)
        release = Release(
            lineage,
            deploy,
            recorded,
            _footprint(model, lineage),
            terms or Terms(),
            versions=versions(),
        )
        artifacts.write_bytes(draft.folder / CARD_FILE, model_card(release).encode())
        draft.save_json(FACTS_FILE, release.asdict() | {"files": _files(draft.folder)})
        draft.card["facts"] = {"student": lineage.student.content, "deploy": deploy}
    return release


def require_place(folder: Path, *, force: bool) -> None:
    """Check that an export may be written to ``folder``.

    Raises:
        UserError: An export is there and ``force`` is not given, or what is there is none.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        artifacts.read_card(folder, kind=KIND)
    except (KdciError, OSError):
        fix = "give another folder with --to"
        raise UserError(str(folder), "is there and is no whole export", fix) from None
    if not force:
        raise UserError(str(folder), "is there already", "give --force to replace it, or --to")


@contextmanager
def _no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove the folders that were made on the way to one that is not written after all."""
    made = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _write_graphs(
    draft: Draft, model: Student, lineage: Lineage, formats: Sequence[Format]
) -> dict[str, dict[str, Any]]:
    """Write each format, read it again and hold it against the student."""
    subject = str(lineage.student.path)
    graph = trace(model, lineage.student.facts, subject=subject)
    inputs = parity_inputs(graph.shape)
    recorded = {}
    for each in formats:
        place = draft.folder / each.place
        of_format = f"{subject} as {each.name}"
        with exporting(of_format):
            facts = each.write(graph, place)
            found = differences(each.load(place), model, inputs)
        parity = require_parity(found, subject=of_format)
        recorded[each.name] = {"place": each.place, **facts, "parity": parity}
    return recorded


def _deployed(model: Student) -> dict[str, torch.nn.Module]:
    """Return the modules that are deployed, by what the names of their weights begin with."""
    if model.deploy == "compensated" and model.compensation is not None:
        return {"": model.backbone, "compensation.": model.compensation}
    return {"": model.backbone}


def _footprint(model: Student, lineage: Lineage) -> Footprint:
    """Measure the student beside its teacher, where that is at hand."""
    sizes: dict[str, Size] = {}
    models: dict[str, Model] = {}
    if lineage.teacher is not None:
        teacher = load_teacher(lineage.teacher, spec_of_facts(lineage.teacher.facts))
        sizes[TEACHER] = size_of(teacher)
        models[TEACHER] = lambda images: teacher(images).logits
    sizes[STUDENT] = size_of(*_deployed(model).values())
    models[STUDENT] = model
    facts = lineage.student.facts
    shape = (facts["channels"], facts["image_size"], facts["image_size"])
    latencies: dict[int, Mapping[str, float]] = {}
    for batch in BATCHES:
        taken = median_latencies(models, torch.full((batch, *shape), 0.5))
        latencies[batch] = {name: 1000 * median for name, median in taken.items()}
    return Footprint(sizes, latencies, torch.get_num_threads(), processor())


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and hash of what has been written, by path below the export."""
    return {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hash_file(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
