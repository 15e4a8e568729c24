"""`kdci run --serve`: a deployment of the flow, and the process that runs what is started there."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kdci.errors import UserError
from pipelines.flow.server import START_IT, require_answer, server_address
from pipelines.flow.telemetry import switch_off
from pipelines.running.stopping import stopped_by_signals
from pipelines.tracking.uri import redacted

if TYPE_CHECKING:
    from prefect.runner import Runner

NAME = "kdci"
END_SECONDS = 60.0
"""How long a flow run in progress has to end when the process that serves it is told to."""


def serve_flow(root: Path, defaults: Mapping[str, Any]) -> int:
    """Register the deployment ``kdci/kdci`` and run its flow runs, until Ctrl-C.

    Flow runs work in the project folder, one at a time: a second one waits for its turn.

    Args:
        root: The project folder.
        defaults: Values of the flow's parameters where a run in the UI leaves them as they are.

    Raises:
        UserError: No Prefect server is named.
        StorageError: The server does not answer.
    """
    switch_off()
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.chdir(root)
    from prefect.runner import Runner
    from prefect.settings import PREFECT_UI_URL
    from prefect.types.entrypoint import EntrypointType

    address = server_address()
    if address is None:
        raise UserError("PREFECT_API_URL", "names no Prefect server", START_IT)
    require_answer(address)
    from pipelines.flow.reproduce import reproduce

    deployment = reproduce.to_deployment(
        name=NAME,
        description=f"Runs the stages of {root.name}. Leave a parameter null to keep params.yaml.",
        tags=["kdci"],
        parameters={name: value for name, value in defaults.items() if value is not None},
        concurrency_limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    runner = Runner(limit=1)
    runner.add_deployment(deployment)  # type: ignore[arg-type]
    place = redacted(str(PREFECT_UI_URL.value()))
    typer.echo(f"deployment {reproduce.name}/{NAME}: start runs at {place}")
    with suppress(asyncio.CancelledError):
        asyncio.run(_serve(runner))
    return 0


async def _serve(runner: Runner) -> None:
    """Run what is started, until a signal; a flow run in progress ends before its runner.

    The runner would kill it, and its server show it as running and let no other one start.
    """
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None

    def leave(number: int) -> None:
        _end_flow_runs()
        loop.call_soon_threadsafe(serving.cancel)

    with stopped_by_signals(leave, twice_ends=True):
        handler: Any = signal.getsignal(signal.SIGTERM)
        runner.handle_sigterm = handler  # type: ignore[method-assign]  # it would kill as well
        await runner.start()


def _end_flow_runs() -> None:
    """Ask the processes of flow runs to end, which saves their stages' state, and wait for it."""
    import psutil

    flow_runs = psutil.Process().children()
    if flow_runs:
        typer.echo("kdci: warning: stopping: stages save their state", err=True)
    for flow_run in flow_runs:
        with suppress(psutil.NoSuchProcess):
            flow_run.terminate()
    deadline = time.monotonic() + END_SECONDS
    while any(one.is_running() for one in flow_runs) and time.monotonic() < deadline:
        time.sleep(0.1)
