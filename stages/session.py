"""What a stage runs in: its lock, its resumable work folder, its clock, its way to stop.

A session holds an operating-system lock for as long as its process lives, so that no two
processes write one output, not even when the runner of the first one was killed. Its
checkpoints lie outside DVC's outs, in a folder named by what the result depends on: params,
dependencies and code. Another value of any of them never meets an old checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from kdci.config.params import Params
from kdci.errors import BusyError, StoppedError, StorageError
from kdci.graph.build import Graph
from kdci.graph.node import Node
from kdci.store import artifacts
from kdci.store.hashing import hash_json
from kdci.store.layout import Layout
from kdci.store.metrics import MetricFile
from kdci.store.revision import code_revision
from stages._progress import Progress
from stages._system import SystemMonitor
from stages.signals import StopFlag

if TYPE_CHECKING:
    from kdci.training.runtime import Runtime

CHECKPOINT_SECONDS = 10.0
"""A loop's state is saved when this long has passed since the last time."""
SAVING_SECONDS = 0.5
"""A state that takes longer to save is saved more seldom in proportion: 5 % of the time at most."""
LOCK_SECONDS = 20.0
"""How long to wait for an orphan of a killed run to save its state and leave."""

State = dict[str, Any]
_log = logging.getLogger("kdci")


@dataclass
class Session:
    """A running stage; see the module's docstring.

    Attributes:
        graph: All nodes, with the whole, validated params.
        node: Which of them runs: what it is made from, and where its result will lie.
        code: Fingerprint of the code that the result depends on.
        stop: Tells that a signal came.
    """

    graph: Graph
    node: Node
    code: str
    stop: StopFlag = field(default_factory=StopFlag)

    def __post_init__(self) -> None:
        params = self.graph.params
        self.params: Params = params.of_other() if self.node.of_other else params
        self.values = self.graph.values(self.node)
        self.layout: Layout = self.graph.layout
        self._parents: dict[str, artifacts.Artifact] = {}
        self._lock = FileLock(self.layout.work / "locks" / f"{self.node.name}.lock")
        self._started = time.time()
        self._clock = time.monotonic()
        self._elapsed_before = 0.0
        self._loop_seconds = 0.0
        self._last_save = time.monotonic()
        self._checkpoint_interval = CHECKPOINT_SECONDS
        self._runtime_card: dict[str, Any] = {}
        self._system: SystemMonitor | None = None
        self.reproducible = True

    # -- one writer ---------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the stage's lock; the kernel frees it however the process ends.

        Raises:
            BusyError: Another process holds it.
        """
        path = Path(self._lock.lock_file)
        with artifacts.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        holder = path.with_suffix(".holder")
        try:
            self._lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
            fix = "wait for it, or stop that process"
            raise BusyError(self.node.name, f"is running in process {who}", fix) from None
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._started))
            artifacts.replace_file(holder, f"{os.getpid()} since {since}\n".encode())
            for place in (holder, self.node.artifact, self.node.timing):
                artifacts.remove_leftovers(place)
            yield
        finally:
            self._stop_system()
            self._lock.release()

    # -- what it reads --------------------------------------------------------------------

    def parent(self, role: str) -> artifacts.Artifact:
        """Open what the result is made from, verified; it is recorded to come from it.

        Args:
            role: One of the node's parents.

        Raises:
            UserError: It is not there.
            IntegrityError: It is damaged.
        """
        parent = self.node.parents[role]
        self._parents[role] = artifacts.open_artifact(parent.path, kind=parent.kind)
        return self._parents[role]

    @property
    def parents(self) -> dict[str, str]:
        """Content hashes of the parents, by role."""
        return {name: artifact.content for name, artifact in self._parents.items()}

    def start_runtime(self) -> Runtime:
        """Set up torch, then open the work folder of this very computation.

        Call once all parents are open: the folder's name depends on them.
        """
        from kdci.store.checkpoints import Checkpoints  # loads torch, once params are validated
        from kdci.training.runtime import start

        block = self.params.runtime
        self.runtime = start(
            device=block.device,
            threads=block.threads,
            precision=block.precision,
            memory_format=block.memory_format,
        )
        self._runtime_card = self.runtime.card()
        made_of = {"params": self.values, "parents": self.parents, "code": self.code}
        self.key = hash_json(made_of)
        self.folder = self.layout.work / "work" / self.node.name / self.key[:16]
        with artifacts.storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricFile(self.folder / "metrics.jsonl")
        self.checkpoints = Checkpoints(self.folder)
        (self.folder / "failure.json").unlink(missing_ok=True)
        identity = {
            "artifact": str(self.node.artifact.relative_to(self.layout.root)),
            **made_of,
            "key": self.key,
            "started": self._started,
            "pid": os.getpid(),
        }
        artifacts.replace_file(self.folder / "identity.json", json.dumps(identity).encode())
        device = str(self._runtime_card.get("device", "cpu"))
        self._system = SystemMonitor(self.folder / "system.jsonl", lambda: self.seconds, device)
        return self.runtime

    def note_format(self, network: str, chosen: str) -> None:
        """Put on the card what a network computes in, for the result depends on it."""
        self._runtime_card.setdefault("formats", {})[network] = chosen

    # -- the work folder ----------------------------------------------------------------

    def resume(self) -> State | None:
        """Return the newest saved state, with the metrics cut back to it; None: start over."""
        saved = self.checkpoints.load_newest()
        if saved is None:
            self.metrics.truncate(0)
            return None
        if saved["runtime"] != self._runtime_card:
            _log.warning(
                "kdci: warning: %s goes on under another runtime than it began with; "
                "its result is not reproducible bit for bit",
                self.node.name,
            )
            self.reproducible = False
        self.reproducible = self.reproducible and saved["reproducible"]
        self.metrics.truncate(saved["num_metric_lines"])
        self._elapsed_before = saved["seconds"]
        self._loop_seconds = saved["loop_seconds"]
        state: State = saved["state"]
        return state

    def run_loop(
        self, steps: Iterable[int], *, total: int, state: Callable[[], State], label: str
    ) -> None:
        """Drive a loop, saving its state as time passes and when a signal comes.

        Args:
            steps: Yields the number of steps done after each one.
            total: Steps in all, for the progress display.
            state: Returns what resuming after the step just yielded needs.
            label: What is being done.

        Raises:
            StoppedError: A signal came; the state is saved.
        """
        began = time.monotonic()
        before = self._loop_seconds
        shown = Progress(total, label=f"{self.node.name} {label}", metrics=self.metrics)
        with closing(shown) as progress:
            for step in steps:
                self._loop_seconds = before + time.monotonic() - began
                progress.update(step)
                due = time.monotonic() - self._last_save >= self._checkpoint_interval
                if due or self.stop.signal_number is not None:
                    self.save(step, state())
                self.raise_if_stopped()
        self._loop_seconds = before + time.monotonic() - began

    def save(self, step: int, state: State) -> None:
        """Save a state of the loop."""
        record = {
            "state": state,
            "runtime": self._runtime_card,
            "reproducible": self.reproducible,
            "num_metric_lines": len(self.metrics),
            "seconds": self.seconds,
            "loop_seconds": self._loop_seconds,
        }
        began = time.monotonic()
        self.checkpoints.save(step, record)
        self._last_save = time.monotonic()
        slowness = (self._last_save - began) / SAVING_SECONDS
        self._checkpoint_interval = CHECKPOINT_SECONDS * max(1.0, slowness)

    def raise_if_stopped(self) -> None:
        """Leave if a signal came.

        Raises:
            StoppedError: One came.
        """
        if self.stop.signal_number is not None:
            raise StoppedError(self.stop.signal_number)

    # -- the result ---------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds of this stage's own work, earlier interrupted runs included."""
        return self._elapsed_before + time.monotonic() - self._clock

    @contextmanager
    def new_artifact(self, kind: str, *, seeds: Mapping[str, int]) -> Iterator[artifacts.Draft]:
        """Write the stage's artifact with its provenance, its timing, and clear the work."""
        from kdci.training.runtime import versions

        card = {
            "stage": self.node.name,
            "params": self.values,
            "params_hash": hash_json(self.values),
            "code": {"revision": code_revision(), "hash": self.code},
            "seeds": dict(seeds),
            "parents": self.parents,
            "versions": versions(),
            "runtime": self._runtime_card,
            "reproducible": self.reproducible,
        }
        with artifacts.new_artifact(self.node.artifact, kind=kind, card=card) as draft:
            if len(self.metrics):
                shutil.copyfile(self.metrics.path, draft.folder / "metrics.jsonl")
            yield draft
        timing = {
            "stage": self.node.stage,
            "point": self.node.fields,
            "started": self._started,
            "finished": time.time(),
            "seconds": self.seconds,
            "loop_seconds": self._loop_seconds,
            **self._stop_system(),
        }
        artifacts.replace_file(self.node.timing, json.dumps(timing, indent=1).encode())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stop_system(self) -> dict[str, Any]:
        return {} if self._system is None else self._system.stop()

    def record_failure(self, *, exit_code: int, message: str) -> None:
        """Leave a note of why the stage ended, for whoever follows the run."""
        if hasattr(self, "folder") and self.folder.is_dir():
            note = {"exit_code": exit_code, "message": message}
            with suppress(StorageError):  # a full disk has no room for its note either
                artifacts.replace_file(self.folder / "failure.json", json.dumps(note).encode())


def require_writable(folder: Path) -> None:
    """Fail before the work, not after it, where a result could not be written."""
    with artifacts.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
