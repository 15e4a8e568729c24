"""Ray is reached with a token or not at all, listens no wider than it must, and ends with us."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kdci.errors import IntegrityError, UserError
from pipelines.sweeping import ray_session
from pipelines.sweeping.ray_session import prepare_environment

CLUSTER = "127.0.0.1:1"


@pytest.fixture
def variables(monkeypatch, tmp_path):
    """An environment without any word of Ray, and a home without a token."""
    for name in list(os.environ):
        if name.startswith(("RAY_", "TUNE_")):
            monkeypatch.delenv(name)
    clean = dict(os.environ)
    monkeypatch.setattr(os, "environ", clean)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    return clean


def test_an_instance_of_our_own_gets_a_token_of_its_own(variables):
    prepare_environment(None)
    assert variables["RAY_AUTH_MODE"] == "token"
    assert len(variables["RAY_AUTH_TOKEN"]) == 64
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    first = variables["RAY_AUTH_TOKEN"]
    prepare_environment(None)
    assert variables["RAY_AUTH_TOKEN"] == first, "Ray remembers the first one it read"


@pytest.mark.parametrize("place", ["variable", "named file", "home"])
def test_a_token_of_the_users_is_kept(variables, tmp_path, place):
    file = tmp_path / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text("theirs\n")
    if place == "variable":
        variables["RAY_AUTH_TOKEN"] = "mine"
    elif place == "named file":
        variables["RAY_AUTH_TOKEN_PATH"] = str(file.rename(tmp_path / "token"))
    prepare_environment(CLUSTER)
    assert variables.get("RAY_AUTH_TOKEN") == ("mine" if place == "variable" else None)


def test_a_cluster_is_not_joined_without_a_token(variables, tmp_path):
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN: is needed to join"):
        prepare_environment(CLUSTER)
    variables["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN: is needed to join"):
        prepare_environment(CLUSTER)


def test_no_authentication_is_refused_unless_it_is_asked_for(variables):
    variables["RAY_AUTH_MODE"] = "Disabled"
    with pytest.raises(IntegrityError, match="--allow-no-token"):
        prepare_environment(None)
    prepare_environment(None, allow_no_token=True)
    assert variables["RAY_AUTH_MODE"] == "Disabled"
    assert "RAY_AUTH_TOKEN" not in variables


@pytest.mark.parametrize(
    ("address", "word"),
    [
        (CLUSTER, "can not be reached: Connection refused"),
        ("nowhere.invalid:6379", "can not be reached"),
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:", "is no address"),
        (":6379", "is no address"),
        ("ray://127.0.0.1:10001", "is no address"),
        ("127.0.0.1:999999", "can not be reached"),
    ],
)
def test_an_address_without_a_cluster_is_told_at_once(variables, address, word):
    variables["RAY_AUTH_TOKEN"] = "x"
    began = time.monotonic()
    with pytest.raises(UserError, match=word), ray_session.ray_session(address=address):
        pass
    assert time.monotonic() - began < ray_session.REACH_SECONDS + 5


def test_the_address_may_come_from_the_environment(variables):
    variables.update(RAY_AUTH_TOKEN="x", RAY_ADDRESS=CLUSTER)
    with pytest.raises(UserError, match=CLUSTER), ray_session.ray_session():
        pass


def test_ray_that_is_not_installed_is_told(variables, monkeypatch):
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"kdci\[sweep\]"), ray_session.ray_session():
        pass


HOLD = """
import signal, sys
from pipelines.sweeping.ray_session import ray_session
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
with ray_session(num_cpus=1):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.readline()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
"""
JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start(script, *arguments, **variables):
    kept = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**kept, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def of_session(address):
    """Return the processes of the instance that has this address."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"gcs-address={address}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_session_of_our_own_is_closed_to_others_and_ends_with_us():
    holder = start(HOLD)
    address = holder.stdout.readline().strip()
    assert address, holder.communicate()[1]
    running = of_session(address)
    assert running

    # Who shows no token, or another one, is turned away.
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"}):
        joining = start(JOIN, address, **token)
        _, errors = joining.communicate(timeout=120)
        assert joining.returncode == 1
        assert "Error: " in errors, errors

    # Whatever Ray binds, nobody but this machine talks to it, and it talks to nobody else.
    remote, dashboards = set(), []
    for process in [psutil.Process(holder.pid), *running]:
        for connection in process.net_connections("tcp"):
            if connection.raddr:
                remote.add(connection.raddr.ip.removeprefix("::ffff:"))
            elif connection.laddr.port == 8265:
                dashboards.append(process)
    assert remote and all(ip == "::1" or ip.startswith("127.") for ip in remote), remote
    assert not dashboards

    _, errors = holder.communicate("end\n", timeout=60)
    assert holder.returncode == 0, errors
    assert_gone(address)


@pytest.mark.slow
def test_a_killed_holder_leaves_no_ray_behind():
    holder = start(HOLD)
    address = holder.stdout.readline().strip()
    assert address, holder.communicate()[1]
    words = [word for process in of_session(address) for word in process.cmdline()]
    folder = next(Path(w.partition("=")[2]).parent for w in words if w.startswith("--temp-dir="))
    assert folder.stat().st_mode & 0o777 == 0o700
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert_gone(address)
    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not folder.exists()


def assert_gone(address):
    deadline = time.monotonic() + 30
    while (left := of_session(address)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    host, port = address.split(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port)))
