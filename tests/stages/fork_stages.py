"""Loads torch and every stage once, then forks a child for each order on standard input.

Orders and answers are JSON lines. A child may be given faults, so that the product needs no
hooks for its tests: ``{"target": "os:replace", "n": 3, "when": "before", "action": "kill"}``
kills the process before the third call of ``os.replace`` (counting only those calls whose
arguments contain ``match``, if given). Actions: ``kill``: SIGKILL to itself; ``pause``: touch
the file ``flag`` and wait until the file ``go`` exists; ``full``: from now on the call fails
as on a full disk.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kdci.graph.node import KINDS  # noqa: E402
from kdci.substitution import registry  # noqa: E402
from stages import main as stage_main  # noqa: E402
from stages import session as stage_session  # noqa: E402
from tests.conftest import stage_function  # noqa: E402

PRELOADED = (
    "kdci.store.checkpoints",
    "kdci.deconfounding.confounder",
    "kdci.training.distillation",
    "kdci.training.evaluation",
    "kdci.deconfounding.logit_adjustment",
    "kdci.deconfounding.rebuilding",
    "kdci.deconfounding.strata",
    "kdci.models.students",
    "kdci.training.supervised",
    "safetensors.torch",
    "sklearn.cluster",
    "sklearn.datasets",
)
for name in PRELOADED:
    importlib.import_module(name)
for name in KINDS:
    stage_function(name)
for name in registry.names():
    registry.block_of(name)


def resolve(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name


def install(fault: dict[str, Any]) -> None:
    owner, name = resolve(fault["target"])
    original = getattr(owner, name)
    calls = 0

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += fault.get("match", "") in " ".join(map(str, args))
        due = calls == fault["n"] or (fault["action"] == "full" and calls > fault["n"])
        if due and fault["when"] == "before":
            act(fault)
        result = original(*args, **kwargs)
        if due and fault["when"] == "after":
            act(fault)
        return result

    setattr(owner, name, faulty)


def act(fault: dict[str, Any]) -> None:
    if fault["action"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["action"] == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        Path(fault["flag"]).write_text(str(os.getpid()))
        while not Path(fault["go"]).exists():
            time.sleep(0.01)


def child(order: dict[str, Any]) -> int:
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, os.devnull, os.O_WRONLY),
        (2, order["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        handle = os.open(path, flags, 0o644)
        os.dup2(handle, number)
    if order.get("parent"):  # the stage becomes a grandchild, as under a runner
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return 0
    stage_session.CHECKPOINT_SECONDS = order.get(
        "checkpoint_seconds", stage_session.CHECKPOINT_SECONDS
    )
    stage_session.LOCK_SECONDS = order.get("lock_seconds", stage_session.LOCK_SECONDS)
    if "max_file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["max_file_bytes"],) * 2)
    for fault in order["faults"]:
        install(fault)
    return stage_main.main(order["stage"], stage_function(order["stage"]), order["argv"])


def start(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child(order)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer = {"pid": start(order["start"])}
        else:
            _, status = os.waitpid(order["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
