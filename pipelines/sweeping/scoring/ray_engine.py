"""Score a pool on Ray: actors hold the teacher, tasks decode beside them.

Found by ``kdci.data.open_world.scoring_engine.find_engine`` through the entry point `ray`. Images
pass
through this process, which forms the batches; decoding and the teacher are what is spread. Each
batch is scored whole, by as many threads as this process would use: what comes back is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdci.data.files.decoding import Pixels, UndecodableError
from kdci.data.open_world.scoring_engine import Decoder, Score, ScoringEngine, Workers, score_batch
from kdci.errors import KdciError, UserError
from kdci.models import PixelModel
from kdci.training.runtime import available_cores, start
from pipelines.sweeping.ray_session import ray_session
from pipelines.sweeping.resources import Resources, capacity, nodes

OBJECT_STORE_BYTES = 500_000_000
"""Of an instance of our own: for the images that are underway; more go to its disk."""
BATCHES_AHEAD = 2
"""Of each actor: one that it scores, and the next."""
MOST_CHUNKS_AHEAD = 32
READY_SECONDS = 120.0
"""How long a first actor may take to find its place and get its teacher."""


def ray_engine(key: str) -> ScoringEngine:
    """Return an engine that opens Ray for as long as it is needed.

    Args:
        key: The params key that asked for it, which errors name.

    Raises:
        UserError: Ray is not installed.
    """
    if find_spec("ray") is None:
        what = "ray is not installed"
        raise UserError(key, what, "pip install 'kdci[sweep]', or set it to local")

    return partial(_opened, key)


@contextmanager
def _opened(key: str, teacher: PixelModel, score: Score) -> Iterator[Workers]:
    """Connect to the cluster that RAY_ADDRESS names, or start an instance on the loopback."""
    threads = torch.get_num_threads()
    cores = max(threads, available_cores())
    with ray_session(num_cpus=cores, object_store_bytes=OBJECT_STORE_BYTES), _told(key):
        actors = _start_actors(key, teacher, score, threads)
        yield _RayWorkers(actors)


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Turn what Ray raises into one line."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        words = " ".join(str(cause).split())[:200]
        fix = "start the stage again, it goes on where it was; or set it to local"
        raise KdciError(key, f"ray failed: {type(cause).__name__}: {words}", fix) from None


class _Scorer:
    """An actor: a teacher, given on the CPU, that is set up as the stage's own is."""

    def __init__(self, teacher: PixelModel, score: Score, threads: int, device: str) -> None:
        # The precision is the teacher's own: its matrix products are cast inside.
        runtime = start(device=device, threads=threads, precision="fp32")
        self._teacher, self._score = teacher.to(runtime.device), score

    def ready(self) -> bool:
        return True

    def scores(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # A copy: what lies in Ray's store is read-only, which no tensor may be.
        found = score_batch(self._teacher, self._score, torch.tensor(images))
        return np.asarray(found.numpy())


def _start_actors(key: str, teacher: PixelModel, score: Score, threads: int) -> list[Any]:
    """Start as many actors as there is room for, and return those that found their place.

    Raises:
        UserError: No node has the cores or the GPU that one needs, or they are taken.
    """
    ray = _ray()
    device = teacher.mean.device.type
    on_gpu = device == "cuda"
    room = capacity(nodes(), Resources(1, 1) if on_gpu else Resources(threads, 0))
    if not room:
        what = f"no node of the cluster has {'a GPU' if on_gpu else f'{threads} cores'} for it"
        raise UserError(key, what, "set runtime.threads to what a node has, or use local")
    plain = ray.put(copy.deepcopy(teacher).cpu())
    make = ray.remote(_Scorer).options(num_cpus=1 if on_gpu else threads, num_gpus=int(on_gpu))
    actors = [make.remote(plain, score, threads, device) for _ in range(room)]
    waiting = {actor.ready.remote(): actor for actor in actors}
    ready, _ = ray.wait(list(waiting), num_returns=1, timeout=READY_SECONDS)
    if not ready:
        what = f"no actor found its place on the cluster within {READY_SECONDS:.0f} s"
        raise UserError(key, what, "wait until it has free cores or GPUs, or use local")
    ray.get(ready)  # raises what its start failed of
    more, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=1.0)
    for reference in late:
        ray.kill(waiting[reference])
    ray.get(more)
    return [waiting[reference] for reference in more]


def _ray() -> Any:
    """Return Ray's module, of which only half has types."""
    import ray

    return ray


class _RayWorkers:
    """See ``kdci.data.open_world.scoring_engine.Workers``."""

    def __init__(self, actors: Sequence[Any]) -> None:
        ray = _ray()
        self._ray, self._actors, self._next = ray, actors, 0
        self.num_scored_ahead = BATCHES_AHEAD * len(actors)
        cores = int(ray.cluster_resources().get("CPU", 1))
        self.num_decoded_ahead = min(MOST_CHUNKS_AHEAD, 1 + cores)
        # Without a core of their own: the actors may have all, and wait for what these decode.
        self._decode = ray.remote(_decode).options(num_cpus=0, scheduling_strategy="SPREAD")

    def decode(
        self, decoder: Decoder, items: Sequence[Any]
    ) -> Callable[[], list[Pixels | UndecodableError]]:
        return self._waiting(self._decode.remote(decoder, items))

    def score(self, images_BCHW: Tensor) -> Callable[[], Tensor]:
        actor = self._actors[self._next % len(self._actors)]
        self._next += 1
        wait = self._waiting(actor.scores.remote(images_BCHW.numpy()))
        return lambda: torch.tensor(wait())

    def _waiting(self, reference: Any) -> Callable[[], Any]:
        return lambda: self._ray.get(reference)


def _decode(decoder: Decoder, items: Sequence[Any]) -> list[Pixels | UndecodableError]:
    return decoder(items)
