"""A Ray cluster of two nodes on this machine, one CPU each: prints its address, ends with stdin.

The folder of its sockets and logs, RAY_TMPDIR, and its token come from the environment.
"""

import os
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

SETTINGS = {"num_cpus": 1, "object_store_memory": 80_000_000}

if __name__ == "__main__":
    # Where the address of the newest cluster is noted, which this does not make itself.
    Path(os.environ["RAY_TMPDIR"], "ray").mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={**SETTINGS, "include_dashboard": False})
    cluster.add_node(**SETTINGS)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
