"""``python on_ray.py WHAT FOLDER``: score on a Ray of one's own; a process, as Ray stays in it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from kdci.data.bank.image_bank import ImageBank
from kdci.data.open_world.candidates import PoolPart
from kdci.data.open_world.pool import OpenWorldPool
from kdci.data.open_world.scores import OpenWorldScores
from kdci.data.open_world.scoring_engine import ScoringEngine, local_engine
from kdci.errors import KdciError
from kdci.models import PixelModel, build_backbone
from kdci.training.losses import one_hot_costs
from pipelines.sweeping.scoring import ray_engine as engine_module
from pipelines.sweeping.scoring.ray_engine import ray_engine


class Dying(PixelModel):
    """Ends the process that it is asked in."""

    def forward(self, images_BCHW: Tensor) -> Any:
        os._exit(3)


class Failing(PixelModel):
    def forward(self, images_BCHW: Tensor) -> Any:
        raise RuntimeError("no memory left for a convolution")


def tell_nodes(folder: Path) -> None:
    """Leave a file for each node that scores."""

    class Telling(engine_module._Scorer):
        def scores(self, images: Any) -> Any:
            import ray

            (folder / f"node-{ray.get_runtime_context().get_node_id()}").touch()
            return super().scores(images)

    engine_module._Scorer = Telling  # type: ignore[misc]


def make_teacher(kind: type[PixelModel] = PixelModel) -> PixelModel:
    torch.manual_seed(0)
    backbone = build_backbone("wrn-10-1", num_classes=5, channels=3)
    backbone = backbone.to(memory_format=torch.channels_last)
    return kind(backbone, mean=(0.5,) * 3, std=(0.2,) * 3).eval().requires_grad_(False)


def choose(folder: Path, name: str, engine: ScoringEngine) -> list[Any]:
    """Return the reports, the state once all is scored, and the bytes that are chosen."""
    parts = [PoolPart("folder", Path("pool")), PoolPart("photographs", None, 30)]
    pool = OpenWorldPool(
        parts, image_size=16, channels=3, seed=0, max_bad_fraction=0.5, engine=engine
    )
    scores = OpenWorldScores(
        "dfnd",
        name="score",
        score=one_hot_costs,
        keep="lowest",
        num_selected=40,
        batch_size=7,
        skipped={},
    )
    bank = ImageBank(folder / name, shape=(3, 16, 16))
    steps = scores.choose(lambda: pool, make_teacher(), bank)
    found: list[Any] = [next(steps) for _ in range(3)]
    state = scores.state_dict()
    state = {key: v.tolist() if isinstance(v, Tensor) else v for key, v in state.items()}
    return [*found, *steps, state, (folder / name).read_bytes().hex()]


def main(what: str, folder: Path) -> Any:
    torch.set_num_threads(1)
    os.chdir(folder)  # where no worker of Ray is
    engine = ray_engine("the.key")
    if what == "equal":
        tell_nodes(folder)
        on_ray = choose(folder, "ray.bin", engine)
        return [on_ray == choose(folder, "local.bin", local_engine), on_ray[:-1]]
    if what == "no room":
        engine_module.capacity = lambda nodes, resources: 0  # type: ignore[assignment]
    kinds = {"dying": Dying, "failing": Failing}
    with engine(make_teacher(kinds.get(what, PixelModel)), one_hot_costs) as workers:
        batch = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        if what == "killed":
            workers.score(batch)()
            for process in psutil.Process().children(recursive=True):
                process.kill()
        workers.score(batch)()


if __name__ == "__main__":
    try:
        answer = main(sys.argv[1], Path(sys.argv[2]))
    except KdciError as error:
        answer = error.lines()
    # On a line of its own: Ray writes there too.
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
