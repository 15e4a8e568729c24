"""Nothing is told to anybody: the switches of every tool that would."""

from __future__ import annotations

import os

SWITCHES = {
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "true",  # "1" would do for Prefect alone: MLflow wants the word
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def switch_off() -> None:
    """Set the switches for this process and those it starts; call before a tool is imported."""
    os.environ.update(SWITCHES)
