"""When stages run: each once, after those it is made from, a limited number at a time.

Whoever asks may start a stage: the runner itself, or a Prefect task. What was started goes on
by itself, in a thread and a process of its own; asking again only listens. So nothing that
happens to the asker costs the work.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pipelines.graph.dag import Dag, Verdict
from pipelines.running.stage_process import Outcome, StageProcess, State

PATIENCE = 5.0
"""Seconds that a stage whose turn it is waits for somebody who was to start it."""


StartJob = Callable[[str, Callable[[str], None]], StageProcess]
"""Makes what runs a stage, given where its lines go."""


@dataclass
class _Entry:
    """What is known of one stage."""

    lines: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    job: StageProcess | None = None
    begun: bool = False
    offered: bool = False
    ready_since: float | None = None


class Scheduler:
    """Runs the stages of a graph, at most ``limit`` at a time.

    ``on_line`` hears a stage's name and each line of its output, ``on_outcome`` each outcome once.
    """

    def __init__(
        self,
        dag: Dag,
        start_job: StartJob,
        *,
        limit: int,
        on_line: Callable[[str, str], None] = lambda stage, line: None,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self.dag = dag
        self._start_job = start_job
        self._limit = limit
        self._on_line = on_line
        self._on_outcome = on_outcome
        self._verdicts = dag.verdicts
        self._entries = {name: _Entry() for name in dag.stages}
        self._change = threading.Condition()
        self.stopped_by: int | None = None

    # -- asking ---------------------------------------------------------------------------

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """The outcomes so far, in the graph's order."""
        with self._change:
            return {
                name: entry.outcome
                for name, entry in self._entries.items()
                if entry.outcome is not None
            }

    @property
    def finished(self) -> bool:
        """Tell whether every stage has an outcome."""
        return len(self.outcomes) == len(self._entries)

    def turns(self) -> Iterator[str]:
        """Yield each stage when it may start, until all have an outcome.

        Stages that are not to be run, because one that they need has no result, are left out.
        """
        while True:
            with self._change:
                name = self._next_turn()
                if name is None:
                    if self._all_settled():
                        return
                    self._change.wait()
                    continue
                self._entries[name].offered = True
            yield name

    def begin(self, name: str) -> None:
        """Start a stage, unless it was started before."""
        with self._change:
            entry = self._entries[name]
            if entry.begun or entry.outcome is not None:
                return
            entry.begun = True
            if self._is_unchanged(name):
                self._settle(name, Outcome(name, State.cached, "unchanged"))
                return
            entry.job = self._start_job(name, lambda line: self._hear(name, line))
        # Not a daemon: the interpreter waits for stages at work, whatever became of the asker.
        threading.Thread(target=self._run, args=(name, entry.job), name=name).start()

    def follow(self, name: str, on_line: Callable[[str], None]) -> Outcome:
        """Start a stage unless it was started, hear all its lines, and return its outcome."""
        self.begin(name)
        heard = 0
        while True:
            with self._change:
                entry = self._entries[name]
                while entry.outcome is None and len(entry.lines) == heard:
                    self._change.wait()
                new, outcome = entry.lines[heard:], entry.outcome
                heard += len(new)
            for line in new:
                on_line(line)
            if outcome is not None:
                return outcome

    def run_all(self) -> None:
        """Start every stage when its turn comes, and return when all have an outcome."""
        for name in self.turns():
            self.begin(name)

    def watch(self, patience: float, on_overdue: Callable[[str], None]) -> None:
        """Return when all have an outcome; start by itself what nobody starts in time.

        Args:
            patience: Seconds that a stage waits, ready, for somebody to start it. Once one has
                waited in vain, the others no longer wait.
            on_overdue: Hears the name of the first.
        """
        while not self.finished:
            with self._change:
                waited = self._longest_wait()
                if waited is None or waited[1] < patience:
                    self._change.wait(timeout=0.2)
                    continue
            if patience:
                on_overdue(waited[0])
                patience = 0.0
            self.begin(waited[0])

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask the stages at work to save their state and end, and start no other.

        The exit code tells of the signal.
        """
        with self._change:
            if self._all_settled():
                return  # it came too late to make a difference
            self.stopped_by = signal_number
            jobs = [entry.job for entry in self._entries.values() if entry.job is not None]
            for name, entry in self._entries.items():
                if not entry.begun and entry.outcome is None:
                    self._settle(name, Outcome(name, State.not_run, "the run was stopped"))
        for job in jobs:
            job.stop()

    # -- deciding, with the lock held -------------------------------------------------------

    def _next_turn(self) -> str | None:
        """Return a stage to offer: one that is ready, or was started by somebody else."""
        free = self._limit - self._num_at_work()
        for name, entry in self._entries.items():
            if entry.offered or (entry.outcome and entry.outcome.state is State.not_run):
                continue
            if entry.begun or (self._is_ready(name) and (free > 0 or self._is_unchanged(name))):
                return name
        return None

    def _longest_wait(self) -> tuple[str, float] | None:
        """Return who has been ready for longest with room to run, and for how many seconds."""
        now, free = time.monotonic(), self._limit - self._num_at_work()
        waits = []
        for name, entry in self._entries.items():
            # What was offered has its place: whoever was offered it may come yet.
            room = free > 0 or entry.offered or self._is_unchanged(name)
            if entry.begun or entry.outcome or not room or not self._is_ready(name):
                entry.ready_since = None
                continue
            entry.ready_since = entry.ready_since or now
            waits.append((name, now - entry.ready_since))
        return max(waits, key=lambda wait: wait[1], default=None)

    def _num_at_work(self) -> int:
        """Count what runs and what was offered: it is about to."""
        return sum((e.begun or e.offered) and e.outcome is None for e in self._entries.values())

    def _is_ready(self, name: str) -> bool:
        upstream = self.dag.stages[name].upstream
        return all(self._has_result(parent) for parent in upstream)

    def _has_result(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is None or (entry.outcome is not None and entry.outcome.has_result)

    def _is_unchanged(self, name: str) -> bool:
        """Tell whether DVC need not be asked: nothing differs, and no parent came out anew."""
        verdict = self._verdicts[name]
        if verdict is not Verdict.follows:
            return verdict is Verdict.unchanged
        # A stage that is not of this graph is up to date: it was left out for that.
        entries = [self._entries.get(parent) for parent in self.dag.stages[name].upstream]
        outcomes = [entry.outcome for entry in entries if entry is not None]
        return all(outcome is not None and outcome.state is State.cached for outcome in outcomes)

    def _all_settled(self) -> bool:
        return all(entry.outcome is not None for entry in self._entries.values())

    def _settle(self, name: str, outcome: Outcome) -> None:
        self._entries[name].outcome = outcome
        self._change.notify_all()
        with suppress(Exception):  # whoever listens (a closed terminal?) can not harm a run
            self._on_outcome(outcome)
        if outcome.has_result or outcome.state is State.not_run:
            return
        for other in self.dag.descendants([name]):
            if self._entries[other].outcome is None:
                self._settle(other, Outcome(other, State.not_run, f"{name} has no result"))

    # -- working ------------------------------------------------------------------------------

    def _run(self, name: str, job: StageProcess) -> None:
        try:
            outcome = job.run()
        except Exception as error:  # a stage never ends without an outcome
            what = f"could not be run: {error}"
            outcome = Outcome(name, State.failed, what, exit_code=1)
        with self._change:
            self._settle(name, replace(outcome, stage=name))

    def _hear(self, name: str, line: str) -> None:
        with self._change:
            self._entries[name].lines.append(line)
            self._change.notify_all()
        with suppress(Exception):
            self._on_line(name, line)
