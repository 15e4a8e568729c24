"""A search as it is set up once, and driven by Ray Tune as often as it is gone on with."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.errors import UserError
from kdci.graph.build import graph_of
from kdci.store.artifacts import replace_file
from kdci.store.layout import Layout
from pipelines.graph.current import current_graph
from pipelines.graph.dag import read_dag
from pipelines.running.stopping import StopRequest
from pipelines.running.workspace import await_stages
from pipelines.searching.criteria import require_criterion
from pipelines.searching.options import SearchOptions, require_options
from pipelines.searching.plan import begin_search, grid_of, plan_trials
from pipelines.searching.results import (
    STOP_FILE,
    Event,
    Search,
    TrialRecord,
    read_search,
    search_folder,
    searches,
    write_search,
)
from pipelines.searching.space import Space, read_space, require_valid
from pipelines.sweeping.guarded import Guard, deciding
from pipelines.sweeping.resources import capacity, choose_resources, nodes

STOPPING_SECONDS = 45.0
"""How long the trials of a stopped search have to save their state."""


def prepare(root: Path, params: Params, options: SearchOptions) -> tuple[Space, Search]:
    """Check everything that can be checked, and write the search's folder.

    Raises:
        UserError: Something does not fit.
    """
    from pipelines.params.edit import checked, with_values

    require_options(options)
    require_criterion(options.criterion, params)
    space = read_space(options.space, options.keys)
    begun = begin_search(params, options, space)
    text = with_values((root / "params.yaml").read_text(encoding="utf-8"), grid_of(begun, params))
    trial_params = checked(text)
    require_valid(space, trial_params)
    # A block that the file leaves to its defaults has no place for a value yet.
    with_values(text, {key: each.extremes[0] for key, each in space.items()})
    current_graph(root, params)
    graph = graph_of(trial_params, root)
    found = plan_trials(graph, begun, read_dag(root))
    if not found.name:
        made = f"{found.method}-{found.variant}-{found.identity[:8]}".replace("_", "-")
        found = found.model_copy(update={"name": made})
    layout = graph.layout
    _require_same(layout, found)
    write_search(layout, found)
    replace_file(search_folder(layout, found.name) / "params.yaml", text.encode())
    return space, found


def _require_same(layout: Layout, found: Search) -> None:
    """Refuse a name under which something else was searched."""
    if found.name not in searches(layout):
        return
    earlier = read_search(layout, found.name)
    if earlier.identity == found.identity:
        return
    before, now = earlier.model_dump(mode="json"), found.model_dump(mode="json")
    differing = [key for key in now if before.get(key) != now[key]]
    if "given" in differing:
        keys = sorted({*before["given"], *now["given"]})
        differing += [k for k in keys if before["given"].get(k) != now["given"].get(k)]
        differing.remove("given")
    what = f"was begun with another {', '.join(differing)}"
    raise UserError(f"--name {found.name}", what, "give another name, or set that back")


def tune_trials(
    params: Params,
    layout: Layout,
    found: Search,
    space: Space,
    records: list[TrialRecord],
    options: SearchOptions,
    num_left: int,
    on_event: Event,
    stop: StopRequest,
) -> None:
    """Have Ray Tune run trials until there are enough, or a signal comes."""
    from ray import tune

    from pipelines.searching.searcher import DistinctSearcher, make_scheduler
    from pipelines.searching.trainable import RecordWriter, SearchTrial

    class StoppedBySignal(tune.Stopper):  # type: ignore[misc,unused-ignore]
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(stop)

    storage = search_folder(layout, found.name) / "tune"
    shutil.rmtree(storage, ignore_errors=True)  # Tune's own notes are never read back
    storage.mkdir(mode=0o700)
    known_nodes = nodes()
    resources = choose_resources(params, known_nodes, cpus=options.cpus, gpus=options.gpus)
    room = capacity(known_nodes, resources)
    # Failures are in the trials' records, and told by us.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        tune.with_resources(SearchTrial, resources.request()),
        param_space={
            "preset": layout.preset,
            "search": found.name,
            "guard": Guard(layout.root.absolute(), deciding(os.environ), resources.gpu_share),
        },
        tune_config=tune.TuneConfig(
            num_samples=num_left,
            search_alg=DistinctSearcher(found, space, records),
            scheduler=make_scheduler(found, records),
            # More would be asked for before they can run.
            max_concurrent_trials=min(room, options.limit or room),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage.absolute()),
            stop=StoppedBySignal(),
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            # The stages' own checkpoints are what a trial goes on from.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[RecordWriter(layout, found, on_event)],
            verbose=0,
        ),
    )
    tuner.fit()


@contextmanager
def told_to_trials(layout: Layout, found: Search, stop: StopRequest) -> Iterator[None]:
    """Have a file tell trials, on whatever machine, that the search is being stopped."""
    file = search_folder(layout, found.name) / STOP_FILE
    file.unlink(missing_ok=True)
    try:
        with stop.heard_by(lambda number: file.touch()):
            yield
    finally:
        file.unlink(missing_ok=True)


def await_trials(layout: Layout, found: Search) -> None:
    """Wait until the stages of stopped trials on this machine have saved their state."""
    deadline = time.monotonic() + STOPPING_SECONDS
    for trial in (search_folder(layout, found.name) / "trials").glob("*"):
        await_stages(Layout(trial, ""), deadline - time.monotonic())
