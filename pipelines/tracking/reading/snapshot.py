"""All files of an experiment at one moment, and what they still lack."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdci.errors import KdciError
from kdci.graph.build import Graph
from kdci.graph.node import Node
from kdci.graph.standing import card_at, is_in_place
from kdci.store.layout import Cell, Layout
from pipelines.tracking.reading.files import Finished, Report, read_finished, read_report
from pipelines.tracking.reading.origins import Origins, read_origins
from pipelines.tracking.reading.work import Work, read_work


@dataclass
class Snapshot:
    """What the files say.

    Attributes:
        graph: The current params' graph.
        work: Unfinished executions, the oldest first.
        finished: The artifacts that are there and whole, by the name of their node.
        report: The report.
        origins: Who made the artifacts.
        warnings: Damaged files that were left out, one line each.
    """

    graph: Graph
    work: list[Work] = field(default_factory=list)
    finished: dict[str, Finished] = field(default_factory=dict)
    report: Report | None = None
    warnings: list[str] = field(default_factory=list)
    origins: Origins = field(default_factory=Origins)

    @property
    def layout(self) -> Layout:
        """Where the files are."""
        return self.graph.layout

    @property
    def nodes(self) -> list[Node]:
        """What leaves an artifact, each after those it is made from: all but the report."""
        return [node for node in self.graph.nodes.values() if node.stage != "report"]

    @property
    def running(self) -> int:
        """Number of stages at work."""
        return sum(work.status == "RUNNING" for work in self.work)

    @property
    def pending(self) -> int:
        """Number of expected artifacts that are missing, damaged or outdated."""
        return sum(not self.is_current(node) for node in self.nodes)

    def is_current(self, node: Node) -> bool:
        """Tell whether an artifact is there, made with the current params from the current parents.

        Between two stages of ``dvc repro`` nothing runs and old artifacts may still lie there.
        """
        scored = [parent for parent in node.parents.values() if parent.kind == "student"]
        return is_in_place(self.graph, node, self._card) and all(
            self._card(student.path, student.kind) for student in scored
        )

    def current_evaluation(self, cell: Cell) -> Finished | None:
        """Return the evaluation that ``cell`` belongs to if it scored the student there is now."""
        student, found = self.student(cell), self.evaluation(cell)
        if student is None or found is None or cell not in found.rows:
            return None
        return found if found.parents.get(cell.name, student.content) == student.content else None

    def with_content(self, content: str) -> Finished | None:
        """Return the artifact with this content hash, if it is there."""
        matches = (one for one in self.finished.values() if one.content == content)
        return next(matches, None)

    def is_running(self, node: Node) -> bool:
        """Tell whether the stage of ``node`` is at work."""
        return any(one.status == "RUNNING" and one.node is node for one in self.work)

    def student(self, cell: Cell) -> Finished | None:
        """Return the student of ``cell``, if it is there."""
        return self._at(self.layout.student(cell))

    def evaluation(self, cell: Cell) -> Finished | None:
        """Return the evaluation that ``cell`` belongs to, if it is there."""
        return self._at(self.layout.evaluation(cell.teacher, cell.student, cell.method))

    def _at(self, path: Path) -> Finished | None:
        node = self.graph.by_artifact.get(path)
        return None if node is None else self.finished.get(node.name)

    def _card(self, path: Path, kind: str) -> dict[str, Any] | None:
        """Return a card as it was at this moment; of what no stage makes, as it is now."""
        if path not in self.graph.by_artifact:
            return card_at(path, kind)
        found = self._at(path)
        return None if found is None else found.card


def take_snapshot(graph: Graph, *, trusted: Container[tuple[str, str]]) -> Snapshot:
    """Read all files of an experiment; what is damaged becomes a warning.

    Args:
        graph: The current params' graph.
        trusted: Artifact paths with content hashes whose files need not be hashed again.
    """
    snapshot, layout = Snapshot(graph), graph.layout

    @contextmanager
    def noting_damage() -> Iterator[None]:
        try:
            yield
        except KdciError as error:
            snapshot.warnings.append(str(error))

    # What tells of artifacts before them: it may be about older ones then, which shows.
    snapshot.origins = read_origins(layout)
    # Work before artifacts: a stage that finishes meanwhile is then seen as finished.
    for folder in sorted((layout.work / "work").glob("*/*")):
        with noting_damage():
            work = read_work(folder, graph)
            if work is not None:
                snapshot.work.append(work)
    snapshot.work.sort(key=lambda work: work.started)
    for node in snapshot.nodes:
        with noting_damage():
            finished = read_finished(node, layout, trusted=trusted)
            if finished is not None:
                snapshot.finished[node.name] = finished
    with noting_damage():
        snapshot.report = read_report(layout)
    return snapshot
