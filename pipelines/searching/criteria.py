"""What a search maximises: evaluate's own measures, on data that is no test data.

`agreement` needs no data at all: how often student and teacher agree on held-out substitutes.
`accuracy:SPLIT` is for those who have labelled images beside the test split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from kdci.config.catalog import facts_of_spec, stem_for
from kdci.config.params import Params
from kdci.deconfounding.arms import ARMS
from kdci.errors import IntegrityError, UserError
from kdci.graph.build import Graph
from kdci.store.artifacts import Artifact, open_artifact
from kdci.store.layout import Cell

if TYPE_CHECKING:
    from kdci.data.datasets.labelled import Split
    from kdci.models.students import Student
    from kdci.training.scoring import ScoredSet

AGREEMENT = "agreement"
ACCURACY = "accuracy"
FIX = "agreement, or accuracy:SPLIT with a split that is not the test split"


def require_criterion(criterion: str, params: Params) -> None:
    """Require ``agreement`` or ``accuracy:SPLIT``.

    Raises:
        UserError: It is neither, the split does not exist, or it is the test split.
    """
    from kdci.data.datasets.labelled import Split

    if criterion == AGREEMENT:
        return
    measure, colon, split = criterion.partition(":")
    if measure != ACCURACY or not colon:
        raise UserError("--criterion", f"unknown criterion {criterion!r}", FIX)
    if split in {"test", params.data.test}:
        what = "a search that sees the test split has no test data left to be judged by"
        raise UserError("--criterion", what, FIX)
    others = [name for name in get_args(Split) if name != "test"]
    if split not in others:
        what = f"{params.data.name} has no split {split!r}"
        raise UserError("--criterion", what, f"one of {', '.join(others)}; or agreement")


def part_of(params: Params, variant: str) -> str:
    """Return which part of a student is deployed: `backbone` or `compensated`."""
    return params.evaluate.deploy if ARMS[variant].compensated else "backbone"


class Scorer:
    """Scores the students of a trial as evaluate does: the same code, device and threads.

    The trial's graph lies in its own root; relative data paths start in the project folder.
    ``first`` is any of the students.
    """

    def __init__(self, graph: Graph, project: Path, criterion: str, first: Cell) -> None:
        from kdci.models.networks import Networks
        from kdci.training.runtime import start

        params, layout, block = graph.params, graph.layout, graph.params.runtime
        self._params, self._layout, self._first = params, layout, first
        self._project = project
        self._measure, _, self._split = criterion.partition(":")
        runtime = start(device=block.device, threads=block.threads, precision=block.precision)
        networks, spec = Networks(runtime, layout.formats), params.data.spec
        teacher = open_artifact(layout.teacher(first.teacher), kind="teacher")
        self._teacher = networks.teacher(teacher, spec)
        stem = stem_for(params.backbone.stem, spec.image_size)
        self._format = networks.format_of(first.student, spec, stem=stem, training=False)
        self._device = runtime.device
        self._sets: dict[int, ScoredSet] = {}

    def score(self, student: Student, cell: Cell) -> float:
        """Return a student's score in percent."""
        from kdci.training.scoring import percentages, score

        on, block = self._set(cell.pool_seed), self._params.evaluate
        scores = score(
            student,
            on.images,
            chosen=self._format,
            device=self._device,
            batch_size=block.batch_size,
        )
        measures = percentages(scores, on, self._measure)
        found = measures[f"{self._measure}_{part_of(self._params, cell.variant)}"]
        assert found is not None
        return found

    def _set(self, pool_seed: int) -> ScoredSet:
        key = 0 if self._split else pool_seed
        if key not in self._sets:
            self._sets[key] = self._load(pool_seed)
        return self._sets[key]

    def _load(self, pool_seed: int) -> ScoredSet:
        from kdci.data.bank.mapped_images import MappedImages
        from kdci.data.datasets.loading import load_split
        from kdci.training.scoring import ScoredSet

        if not self._split:
            place = self._layout.pool(self._first.teacher, self._first.method, pool_seed)
            images = MappedImages(open_artifact(place, kind="pool").file("holdout.npy"))
            batch_size = self._params.evaluate.batch_size
            return ScoredSet.of_teacher(self._teacher, images, batch_size=batch_size)
        data = self._params.data
        path = self._project / data.path if data.path else None
        labelled = load_split(data.spec, path=path, split=cast("Split", self._split))
        return ScoredSet(labelled.images, expected=labelled.labels, teacher=labelled.labels)


def load_snapshot(file: Path, params: Params, cell: Cell) -> Student | None:
    """Load a student while it is being distilled, from a snapshot in distill's work folder.

    Returns:
        The student; None: the file is not whole yet, or is there no more.
    """
    from kdci.models.students import snapshot_of
    from kdci.store.artifacts import parse_tensors

    try:
        data = file.read_bytes()
        shapes = {name: tensor.shape for name, tensor in parse_tensors(data, file).items()}
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        card = {"facts": _facts(params, cell, shapes), "files": {file.name: entry}}
        return snapshot_of(Artifact(file.parent, card), file.name)
    except (FileNotFoundError, IntegrityError):
        return None


def _facts(params: Params, cell: Cell, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card of the finished student will say of its shape."""
    spec, arm = params.data.spec, ARMS[cell.variant]
    compensation = None
    if arm.compensated:
        block = params.compensation.model_copy(update=dict(arm.changes))
        num_prototypes, dimension = shapes["compensation/prototypes_ND"]
        compensation = {
            "num_prototypes": num_prototypes,
            "dimension": dimension,
            "fusion": block.fusion,
            "weights": block.lambda_,
            "hidden_dim": block.hidden_dim,
        }
    return {
        "student": cell.student,
        **facts_of_spec(spec),
        "stem": stem_for(params.backbone.stem, spec.image_size),
        "compensation": compensation,
    }
