"""What a trial asks Ray for, and whether the cluster has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdci.config.params import Params
from kdci.errors import UserError

Node = Mapping[str, float]
"""Resources of one node: `CPU`, `GPU`."""


@dataclass(frozen=True)
class Resources:
    """Cores that Ray sets aside for one trial, and GPUs or a share of one."""

    cpus: float
    gpus: float

    @property
    def gpu_share(self) -> float:
        """Share of a GPU's memory that it may take; 0: it has whole ones, or none."""
        return self.gpus if 0 < self.gpus < 1 else 0.0

    def request(self) -> dict[str, float]:
        """Return what Ray is asked for."""
        return {"cpu": self.cpus, "gpu": self.gpus}


def nodes() -> list[Node]:
    """Return what each node of the cluster has; call inside a ``ray_session``."""
    import ray

    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [dict(node["Resources"]) for node in known if node["Alive"]]


def choose_resources(
    params: Params, nodes: Sequence[Node], *, cpus: float | None, gpus: float | None
) -> Resources:
    """Decide what a trial gets, and refuse what no node could ever give.

    Args:
        params: The params; a stage's threads are `runtime.threads`.
        nodes: What each node has.
        cpus: Cores a trial; None: as many as the stage has threads, and with `threads: auto` all
            of the smallest node's, so that stages do not share a node's cores.
        gpus: GPUs a trial; None: one if the stage may use a GPU and there are any.

    Raises:
        UserError: A number makes no sense, or no node has so much.
    """
    cpus = _default_cpus(params, nodes) if cpus is None else cpus
    gpus = _default_gpus(params, nodes) if gpus is None else gpus
    if cpus <= 0:
        raise UserError("--cpus-per-trial", f"is {cpus:g}", "give more than 0")
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        what = f"is {gpus:g}, and Ray shares no more than one GPU"
        raise UserError("--gpus-per-trial", what, "give a share below 1, or a whole number")
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        largest = max((node.get("CPU", 0) for node in nodes), default=0)
        most = max((node.get("GPU", 0) for node in nodes), default=0)
        what = f"{cpus:g} CPUs with {gpus:g} GPUs are more than any node has"
        fix = (
            f"lower --cpus-per-trial or --gpus-per-trial; nodes have up to {largest:g} and {most:g}"
        )
        raise UserError("resources", what, fix)
    return Resources(cpus, gpus)


def complaints(params: Params, nodes: Sequence[Node], resources: Resources) -> list[str]:
    """Return what will not work well, one line each."""
    found = []
    threads = params.runtime.threads
    if isinstance(threads, str):
        sizes = sorted({int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0)})
        if len(sizes) > 1:
            found.append(
                f"runtime.threads is auto and nodes have {' or '.join(map(str, sizes))} CPUs: "
                "results depend on the node; set a number"
            )
        if resources.cpus < min(sizes, default=1):
            found.append(
                "runtime.threads is auto: trials that share a node each use all of its cores; "
                "set a number"
            )
    elif resources.cpus < threads and not resources.gpus:
        found.append(
            f"trials have {resources.cpus:g} CPUs and {threads} threads (runtime.threads): "
            "they slow each other down"
        )
    if params.runtime.device.startswith("cuda") and not resources.gpus:
        found.append("runtime.device is cuda and trials have no GPU: give --gpus-per-trial")
    return found


def capacity(nodes: Sequence[Node], resources: Resources) -> int:
    """Return how many trials with these resources the nodes carry at a time."""
    wanted = {kind.upper(): amount for kind, amount in resources.request().items() if amount}
    return sum(
        min(int(node.get(kind, 0) / amount) for kind, amount in wanted.items()) for node in nodes
    )


def _default_cpus(params: Params, nodes: Sequence[Node]) -> float:
    threads = params.runtime.threads
    if not isinstance(threads, str):
        return float(threads)
    return min((node["CPU"] for node in nodes if node.get("CPU", 0)), default=1.0)


def _default_gpus(params: Params, nodes: Sequence[Node]) -> float:
    if params.runtime.device == "cpu":
        return 0.0
    return float(any(node.get("GPU", 0) >= 1 for node in nodes))
