"""Jobs that are begun and ended by hand, for what schedules stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pipelines.graph.dag import Change, Dag, DagStage
from pipelines.running.scheduler import Scheduler
from pipelines.running.stage_process import Outcome, State

SECONDS = 20.0
"""No step of these tests takes that long."""
PARAM = (Change("param", "x", "modified"),)


def dag_of(upstream: Mapping[str, Iterable[str]], changed: Iterable[str] | None = None) -> Dag:
    """Return a graph; every stage differs from its last run unless told otherwise."""
    stages = {name: DagStage(name, "", tuple(parents)) for name, parents in upstream.items()}
    differing = stages if changed is None else changed
    return Dag(stages, dict.fromkeys(differing, PARAM))


DIAMOND = {
    "teacher": (),
    "pool": ("teacher",),
    "dictionary": ("pool",),
    "vanilla": ("teacher", "pool"),
    "kdci": ("teacher", "pool", "dictionary"),
    "report": ("vanilla", "kdci"),
}


@dataclass
class Workshop:
    """Makes jobs that do nothing for a while, and notes what happened when.

    Attributes:
        states: What becomes of a stage; completed unless told.
        held: Stages that do not end before they are let go, or stopped.
        seconds: How long the others take.
    """

    states: Mapping[str, State] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    seconds: float = 0.0
    lines: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.events: list[tuple[str, str]] = []
        self.at_work = 0
        self.most_at_work = 0
        self.goes = {name: threading.Event() for name in self.held}
        self.begun = {name: threading.Event() for name in self.held}
        self.stopped: set[str] = set()

    def start_job(self, name: str, hear: Callable[[str], None]) -> Job:
        return Job(self, name, hear)

    def let_go(self, *names: str) -> None:
        for name in names or self.held:
            self.goes[name].set()

    def await_begin(self, *names: str) -> None:
        for name in names:
            assert self.begun[name].wait(SECONDS), name

    @property
    def ran(self) -> list[str]:
        return [name for what, name in self.events if what == "began"]

    def require_order(self, dag: Dag) -> None:
        """Require that every stage began after all it is made from had ended."""
        ended: set[str] = set()
        at_work: set[str] = set()
        for what, name in self.events:
            if what == "ended":
                at_work.remove(name)
                ended.add(name)
                continue
            missing = {p for p in dag.stages[name].upstream if p in self.ran and p not in ended}
            assert not missing, f"{name} began before {missing} ended"
            assert name not in ended | at_work, f"{name} began twice"
            at_work.add(name)


@dataclass
class Job:
    shop: Workshop
    name: str
    hear: Callable[[str], None]

    def run(self) -> Outcome:
        shop = self.shop
        with shop.lock:
            shop.events.append(("began", self.name))
            shop.at_work += 1
            shop.most_at_work = max(shop.most_at_work, shop.at_work)
        if self.name in shop.held:
            shop.begun[self.name].set()
            assert shop.goes[self.name].wait(SECONDS), f"nobody let {self.name} go"
        else:
            time.sleep(shop.seconds)
        for number in range(shop.lines):
            self.hear(f"line {number}")
        with shop.lock:
            shop.events.append(("ended", self.name))
            shop.at_work -= 1
        if self.name in shop.stopped:
            return Outcome(self.name, State.stopped, exit_code=143)
        state = shop.states.get(self.name, State.completed)
        return Outcome(self.name, state, exit_code=1 if state is State.failed else 0)

    def stop(self) -> None:
        self.shop.stopped.add(self.name)
        self.shop.goes[self.name].set()


def states(scheduler: Scheduler) -> dict[str, State]:
    return {name: outcome.state for name, outcome in scheduler.outcomes.items()}


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "it hangs"


def run_all(scheduler: Scheduler) -> None:
    join(in_thread(scheduler.run_all))
    assert scheduler.finished


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
