"""What pip's resolver cannot see: whether the pinned orchestrators work together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLOW = """
from prefect import flow, task

@task
def double(number):
    return 2 * number

@flow
def once():
    return double(21)

assert once() == 42
"""


@pytest.mark.slow
def test_a_prefect_flow_runs_with_the_installed_fastapi(tmp_path: Path) -> None:
    script = tmp_path / "flow.py"
    script.write_text(FLOW, encoding="utf-8")
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        # Its own 20 seconds are short where two test processes share two cores.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
