"""A connection to Ray: a private instance on this machine, or a cluster that is there.

Ray listens on every interface of the machine and can not be told otherwise. Hence a token, which
every caller must show, and no dashboard. Import no ray before the session: it reads the switches
when it is imported. ``python -m pipelines.sweeping.ray_session SIZES`` is the private instance,
which lasts as long as its stdin.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdci.errors import IntegrityError, UserError
from pipelines.flow.telemetry import switch_off

REACH_SECONDS = 5.0
"""How long to wait for a cluster to take a connection."""
OBJECT_STORE_BYTES = 100_000_000
"""If nobody says more: trials pass nothing but small numbers; the stages' data are files."""
END_SECONDS = 30.0
"""How long an instance of our own has to end."""
MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # noqa: S105
DISABLED = "disabled"

SWITCHES = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a stage's paths are those of the project folder
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the stages' own files are the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial of a search has no score to report
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the runner stops its trials itself
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial that asked for no GPU sees none
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def ray_session(
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_bytes: int | None = None,
    allow_no_token: bool = False,
) -> Iterator[None]:
    """Be connected to Ray for the block.

    The handlers of signals are the caller's, before, during and after it.

    Args:
        address: ``host:port`` of a cluster, or `auto` for the one on this machine; None: what
            RAY_ADDRESS says, else an instance of our own that ends with the block.
        num_cpus: Of an instance of our own: the cores it hands out; None: those there are.
        num_gpus: Likewise the GPUs.
        object_store_bytes: Likewise the memory for what passes through it; None: little.
        allow_no_token: Accept ``RAY_AUTH_MODE=disabled``.

    Raises:
        UserError: Ray is not installed, the cluster can not be reached, or there is no token.
        IntegrityError: The token was switched off without ``allow_no_token``.
    """
    if find_spec("ray") is None:
        raise UserError("ray", "is not installed", "pip install 'kdci[sweep]'")
    cluster = address or os.environ.get("RAY_ADDRESS") or None
    cluster = None if cluster == "local" else cluster
    prepare_environment(cluster, allow_no_token=allow_no_token)
    if cluster is None:
        with _own_instance(num_cpus, num_gpus, object_store_bytes) as own, _connected(own, "ray"):
            yield
        return
    _require_reachable(cluster)
    with _connected(cluster, f"--address {cluster}"):
        yield


def prepare_environment(cluster: str | None, *, allow_no_token: bool = False) -> None:
    """Set the switches for Ray in this process and those it starts; see ``ray_session``."""
    switch_off()
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    if os.environ.get(MODE, "").lower() == DISABLED:
        if allow_no_token:
            return
        what = "lets whoever reaches this machine run code on it"
        raise IntegrityError(f"{MODE}={DISABLED}", what, "unset it, or give --allow-no-token")
    os.environ[MODE] = "token"
    if has_token(os.environ):
        return
    if cluster is not None:
        fix = f"put the cluster's token into ~/.ray/auth_token or name its file in {TOKEN_FILE}"
        raise UserError(TOKEN, f"is needed to join the cluster at {cluster}", fix)
    # Kept for the rest of this process: Ray remembers the first one that it read.
    os.environ[TOKEN] = secrets.token_hex(32)


def has_token(environment: Mapping[str, str]) -> bool:
    """Tell whether Ray finds a token in the places it looks at."""
    if environment.get(TOKEN, "").strip():
        return True
    named = environment.get(TOKEN_FILE)
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        return bool(file.read_text(encoding="utf-8").strip())
    return False


@contextmanager
def _own_instance(*sizes: int | None) -> Iterator[str]:
    """Have an instance of our own, of these sizes, and yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.sweeping.ray_session", json.dumps(sizes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline() or "{}")
        if "address" not in answer:
            what = f"does not start: {answer.get('error', 'it ended without a word')}"
            raise UserError("ray", what, "see `ray start --head` for more")
        yield answer["address"]
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _connected(address: str, subject: str) -> Iterator[None]:
    import ray
    from ray.exceptions import RayError

    with _kept_handlers():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            ray.shutdown()
            what = f"does not take us: {' '.join(str(error).split())[:200]}"
            fix = "see `ray status`; the token must be the cluster's own, see docs/sweep.md"
            raise UserError(subject, what, fix) from None
    try:
        yield
    finally:
        with _kept_handlers():
            ray.shutdown()


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Put the handlers of signals back that Ray replaces with its own."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError):  # not the main thread, where none was replaced either
                signal.signal(number, handler)


def _require_reachable(cluster: str) -> None:
    """Find out at once what Ray would find out after two minutes."""
    if cluster == "auto":
        return
    subject, fix = f"--address {cluster}", "give HOST:PORT, as `ray start --head` prints it"
    host, _, port = cluster.rpartition(":")
    if "://" in cluster or not host or not port.isdecimal():
        raise UserError(subject, "is no address of a Ray head node", fix)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        what = f"can not be reached: {getattr(error, 'strerror', None) or error}"
        raise UserError(subject, what, fix) from None


def main(sizes: str) -> int:
    """Start an instance, tell its address or why there is none, and wait for the end of stdin.

    In a process and a session of its own a Ctrl-C or a SIGTERM that is sent to the whole group of
    the runner does not take Ray from under it, and however the runner ends, Ray ends too.

    Args:
        sizes: JSON list: the cores and the GPUs that it hands out, the bytes of its object store;
            null: those there are, and few.
    """
    switch_off()
    import ray

    num_cpus, num_gpus, store = json.loads(sizes)
    settings: dict[str, Any] = {
        "address": "local",  # never an instance of somebody else's that happens to run here
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "include_dashboard": False,
        "object_store_memory": store or OBJECT_STORE_BYTES,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if sys.platform.startswith("linux"):
        # Another name of this machine's loopback; Ray takes 127.0.0.1 for "find one yourself".
        settings["_node_ip_address"] = "127.0.0.2"
    # Not where TMPDIR says: a socket's path may have 107 characters, and Ray takes 80 of them.
    short = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108 - the folder is made private
    with tempfile.TemporaryDirectory(
        prefix="kdci-ray-", dir=short, ignore_cleanup_errors=True
    ) as private:
        try:
            ray.init(**settings, _temp_dir=f"{private}/r")  # below it: Ray opens its own to all
            answer = {"address": ray.get_runtime_context().gcs_address}
        except Exception as error:  # whatever it is, the runner is told
            answer = {"error": " ".join(str(error).split())[:200]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        if "address" in answer:
            sys.stdin.read()
        ray.shutdown()
    return 0 if "address" in answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
