"""The Prefect flow over DVC's graph: a task a stage, in its order, a limited number at a time.

A task starts its stage and follows it. The stage itself runs in a thread and processes that
Prefect knows nothing of (``pipelines.running.scheduler``), and whatever no task has started in
time is
started without one: a server that is slow, dead or killed costs seconds and no work.

``kdci run`` hands its own run to the flow; a deployment's flow run opens one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import State as PrefectState
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_UI_URL
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from pipelines.flow.artifacts import publish, publish_links, publish_results
from pipelines.running.limits import Run, open_run
from pipelines.running.scheduler import PATIENCE
from pipelines.running.stage_process import Outcome, State
from pipelines.running.stopping import stopped_by_signals
from pipelines.tracking.recorder import Recorder
from pipelines.tracking.uri import redacted

CANCEL_POLL = 5.0
"""Seconds between two looks whether the flow run was cancelled in the UI."""


class _Shown(NamedTuple):
    """The run that a flow shows, and who records it."""

    run: Run
    recorder: Recorder | None
    on_begin: Callable[[], None]


_current: ContextVar[_Shown] = ContextVar("kdci_run")


@contextmanager
def handed_over(
    run: Run, recorder: Recorder | None, on_begin: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Let the flow that is called in the block show ``run``, which somebody else drives.

    Args:
        run: The run.
        recorder: Who records it, if anybody does.
        on_begin: Is called when the flow has begun: it will start the stages.
    """
    token = _current.set(_Shown(run, recorder, on_begin))
    try:
        yield
    finally:
        _current.reset(token)


def _flow_run_name() -> str:
    """Name a flow run after the preset that it runs."""
    from prefect.runtime import flow_run

    from kdci.config.params_file import load_params
    from kdci.errors import KdciError

    given = flow_run.parameters.get("preset")
    if given:
        return str(given)
    try:
        return load_params(Path.cwd() / "params.yaml", methods=False).preset
    except KdciError:
        return "kdci"


@flow(
    name="kdci",
    flow_run_name=_flow_run_name,
    description="The stages of params.yaml, with and without KDCI: what `dvc repro` makes.",
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # type: ignore[arg-type]
    persist_result=False,
)
def reproduce(
    preset: Annotated[
        str | None, Field(description="One of `kdci list presets`; null: params.yaml as it is.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        Field(description="Stages, entries of dvc.yaml or patterns; null: everything."),
    ] = None,
    seeds: Annotated[
        list[int] | None, Field(description="Student seeds, put in grid.seeds; null: as they are.")
    ] = None,
    limit: Annotated[
        int | None, Field(description="Stages at work at a time; null: what the cores carry.")
    ] = None,
) -> PrefectState[Any]:
    """Run the project's stages; see the module's docstring."""
    given = _current.get(None)
    if given is not None:
        given.on_begin()
        return _show(given)
    logger = get_run_logger()
    root = Path.cwd()
    with (
        open_run(
            root, runner="prefect", preset=preset, seeds=seeds, targets=targets or (), limit=limit
        ) as run,
        Recorder(root) as recorder,
        # Ctrl-C where it is served, and *Cancel* in the UI; both may come, and more than once.
        stopped_by_signals(run.scheduler.stop, twice_ends=False),
    ):
        driver = threading.Thread(
            target=run.scheduler.watch,
            args=(PATIENCE, lambda stage: logger.warning(OVERDUE, stage)),
        )
        driver.start()
        try:
            with handed_over(run, recorder):
                return _show(_current.get())
        except BaseException:
            # Cancelled or killed: stages save their state. A failing server alone is no reason.
            if not _is_server_trouble():
                run.scheduler.stop()
            raise
        finally:
            driver.join()


OVERDUE = "Prefect has not started %s in time; what is left runs without waiting for it"


def _is_server_trouble() -> bool:
    """Tell whether the exception being handled came of talking to the server."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, httpx.HTTPError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _show(shown: _Shown) -> PrefectState[Any]:
    """Submit a task for each stage when its turn comes, and tell how it all ended."""
    run, recorder, _ = shown
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    run.links[""] = _flow_links(context.flow_run.id)
    futures: dict[str, PrefectFuture[Any]] = {}
    with _cancellation(context.flow_run.id, run):
        # What could not run comes last, and is shown as such.
        for name in chain(run.scheduler.turns(), run.dag.stages):
            if name not in futures:
                upstream = run.dag.stages[name].upstream
                after = [futures[parent] for parent in upstream if parent in futures]
                futures[name] = run_stage.submit(stage=name, return_state=False, wait_for=after)
        for future in futures.values():
            future.wait()
    _try(lambda: publish_results(run.layout))
    if recorder is not None:
        record = recorder.finish()
        if record is not None:
            _try(lambda: publish_links(run.layout, record.where, record.links))
    return _final_state(run)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str) -> PrefectState[Any]:
    """Run one DVC stage; what it prints is the task's log."""
    run = _current.get().run
    context = TaskRunContext.get()
    assert context is not None
    run.links[stage] = {"prefect.task_run_id": str(context.task_run.id)}
    logger = get_run_logger()
    outcome = run.scheduler.follow(stage, logger.info)
    if outcome.state in (State.completed, State.restored):
        node = run.graph.nodes.get(stage)
        if node is not None:
            _try(lambda: publish(node, run.params, run.layout))
    return _state(outcome)


def _state(outcome: Outcome) -> PrefectState[Any]:
    """Return what Prefect shows of an outcome."""
    message = outcome.message or f"{outcome.seconds:.1f} s"
    if outcome.state is State.failed:
        return Failed(message=message)
    if outcome.state in (State.stopped, State.not_run):
        return Cancelled(message=message)
    return Completed(name=str(outcome.state).capitalize(), message=message)


def _final_state(run: Run) -> PrefectState[Any]:
    states = {outcome.state for outcome in run.outcomes}
    if State.failed in states:
        failed = [outcome for outcome in run.outcomes if outcome.state is State.failed]
        told = "\n".join(f"{outcome.stage}: {outcome.message}" for outcome in failed)
        return Failed(message=f"{run.summary()}\n{told}")
    if states & {State.stopped, State.not_run}:
        return Cancelled(message=run.summary())
    if states == {State.cached}:
        return Completed(name="Cached", message=run.summary())
    return Completed(message=run.summary())


def _flow_links(flow_run_id: UUID) -> dict[str, str]:
    links = {"prefect.flow_run_id": str(flow_run_id)}
    address = PREFECT_UI_URL.value()
    if address:  # it may carry a password, and the journal is read by others
        links["prefect.flow_run_url"] = f"{redacted(address)}/runs/flow-run/{flow_run_id}"
    return links


@contextmanager
def _cancellation(flow_run_id: UUID, run: Run) -> Iterator[None]:
    """Stop the run when somebody cancels it in the UI."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(CANCEL_POLL):
            # A server that does not answer says nothing about cancellation.
            with suppress(Exception), get_client(sync_client=True) as client:
                state = client.read_flow_run(flow_run_id).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    run.scheduler.stop()
                    return

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()


def _try(act: Callable[[], None]) -> None:
    """Do what is only for show; that it failed is told and changes nothing."""
    try:
        act()
    except Exception as error:
        with suppress(MissingContextError):
            get_run_logger().warning("not shown in the UI: %s", error)
