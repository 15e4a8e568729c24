"""``python -m pipelines.sweeping.own_ray [CPUS,GPUS,BYTES]``: a Ray that lasts as long as stdin.

A process and a session of its own: a Ctrl-C or a SIGTERM that is sent to the whole group of the
runner does not take Ray from under it, and however the runner ends, Ray ends too.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines.flow.telemetry import switch_off

OBJECT_STORE_BYTES = 100_000_000
"""If nobody says more: trials pass nothing but small numbers; the stages' data are files."""


def main(sizes: str) -> int:
    """Start Ray, tell its address or why there is none, and wait for the end of stdin.

    Args:
        sizes: JSON list: the cores and the GPUs that it hands out, the bytes of its object store;
            null: those there are, and few.
    """
    switch_off()
    import ray

    num_cpus, num_gpus, store = json.loads(sizes)
    # Not where TMPDIR says: a socket's path may have 107 characters, and Ray takes 80 of them.
    short = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108 - the folder is made private
    with tempfile.TemporaryDirectory(
        prefix="kdci-ray-", dir=short, ignore_cleanup_errors=True
    ) as private:
        try:
            # One below it: Ray opens its own folder to everybody.
            ray.init(num_cpus=num_cpus, num_gpus=num_gpus, **_settings(f"{private}/r", store))
            answer = {"address": ray.get_runtime_context().gcs_address}
        except Exception as error:  # whatever it is, the runner is told
            answer = {"error": " ".join(str(error).split())[:200]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        if "address" in answer:
            sys.stdin.read()
        ray.shutdown()
    return 0 if "address" in answer else 1


def _settings(folder: str, store: int | None) -> dict[str, Any]:
    settings = {
        "address": "local",  # never an instance of somebody else's that happens to run here
        "include_dashboard": False,
        "object_store_memory": store or OBJECT_STORE_BYTES,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "_temp_dir": folder,
    }
    if sys.platform.startswith("linux"):
        # Another name of this machine's loopback; Ray takes 127.0.0.1 for "find one yourself".
        settings["_node_ip_address"] = "127.0.0.2"
    return settings


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
