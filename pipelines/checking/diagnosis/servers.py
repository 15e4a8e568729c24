"""Do the servers that the environment names answer, within seconds?

Without one, a tool may try for minutes before it gives up.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from kdci.errors import StorageError
from pipelines.checking.diagnosis.findings import Finding, ok, problem, warning
from pipelines.tracking.uri import redacted, require_store, resolve_uri, sqlite_file

PATIENCE = 3.0
"""Seconds until a server counts as one that does not answer."""
RAY_PATIENCE = 20.0
"""The same for Ray, whose client alone takes seconds to load."""
_RAY_CHECK = "import sys; from ray.scripts.scripts import healthcheck; healthcheck(sys.argv[1:])"


def check_servers(root: Path) -> Iterator[Finding]:
    """Ask the servers that are configured whether they are there."""
    yield _mlflow(root)
    yield _prefect()
    yield _ray()


# -- MLflow -----------------------------------------------------------------------------------


def _mlflow(root: Path) -> Finding:
    uri = resolve_uri(root)
    shown = f"MLflow at {redacted(uri)}"
    mend = "start it, or unset MLFLOW_TRACKING_URI; `kdci sync` makes up for what is missing"
    if uri.startswith(("http://", "https://")):
        return _http(shown, uri, mend)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return ok(f"{shown}: not made yet")
    try:
        require_store(uri)
    except StorageError as error:
        return problem(f"{shown}: {error.what}", error.fix)
    return ok(f"{shown}: can be used")


# -- Prefect ----------------------------------------------------------------------------------


def _prefect() -> Finding:
    try:  # Prefect's own rules: environment, files, active profile
        from prefect.settings import Settings

        url = Settings().api.url
    except ImportError:
        url = os.environ.get("PREFECT_API_URL")
    if not url:
        return ok("Prefect: no server is set; a run starts one of its own")
    mend = "start it, or unset PREFECT_API_URL (`prefect config unset PREFECT_API_URL`)"
    return _http(f"Prefect at {redacted(url)}", url, mend)


# -- Ray --------------------------------------------------------------------------------------


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto"):
        return ok("Ray: no cluster is set; a sweep starts one of its own")
    plain = redacted(address) if "://" in address else address.rpartition("@")[2]
    shown, mend = f"Ray at {plain}", "start it, or unset RAY_ADDRESS"
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        socket.create_connection((parts.hostname or "", parts.port or 6379), PATIENCE).close()
    except (OSError, ValueError) as error:
        return problem(f"{shown} does not answer: {_reason(error)}", mend)
    if "://" in address:  # a client's gateway; it has no health check of its own
        return ok(f"{shown} takes connections")
    return _ray_health(shown, f"{parts.hostname}:{parts.port or 6379}", mend)


def _ray_health(shown: str, address: str, mend: str) -> Finding:
    from pipelines.sweeping.ray_session import MODE, has_token

    command = [sys.executable, "-c", _RAY_CHECK, "--address", address]
    environment = dict(os.environ)
    if has_token(environment):
        environment.setdefault(MODE, "token")  # as a sweep would ask
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=RAY_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        what = f"{shown} takes connections and does not answer within {RAY_PATIENCE:.0f} s"
        return problem(what, mend)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it is not healthy"])[-1][:200]
        return problem(f"{shown}: {reason}", mend)
    return ok(f"{shown} answers")


# -- asking -----------------------------------------------------------------------------------


def _http(shown: str, address: str, mend: str) -> Finding:
    """Ask once how a server is; a refusal is an answer too."""
    url = f"{redacted(address).rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as reply:  # noqa: S310 http(s) alone
            reply.read(1)
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return ok(f"{shown} answers, with status {error.code}")
        return warning(f"{shown} answers with an error: status {error.code}", "see its log")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return problem(f"{shown} does not answer: {_reason(error)}", mend)
    return ok(f"{shown} answers")


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"nothing within {PATIENCE:g} s"
    return str(getattr(cause, "strerror", None) or cause)
