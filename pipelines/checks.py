"""What `kdci check` does: find what would stop `dvc repro`, all of it at once, running nothing.

Params are validated before (``kdci.params_file.load_params``); here they meet the machine, the
data and the artifacts that are in place. torch is loaded when a check needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from kdci.arms import ARMS
from kdci.artifacts import read_card, storage_errors
from kdci.config import Params
from kdci.errors import KdciError, UserError
from kdci.layout import Layout, cells, control_cells, shift_cells
from kdci.method_config import MethodBlock, OpenWorld
from pipelines.plan import planned_stages


def find_problems(params: Params, layout: Layout) -> list[KdciError]:
    """Return everything that would stop the pipeline, as far as a quick look can tell, once."""
    checks = (_device, _dataset, _open_worlds, _sizes, _teachers, _batch_norm, _dictionary, _other)
    problems = [problem for check in checks for problem in check(params, layout)]
    # Two methods may choose from one open world.
    return list({tuple(problem.lines()): problem for problem in problems}.values())


def _raised(
    place: Path, look: Callable[..., None], /, *args: Any, **kwargs: Any
) -> list[KdciError]:
    """Return the error, if any, that a look at ``place`` ends with."""
    try:
        with storage_errors(place):
            look(*args, **kwargs)
    except KdciError as error:
        return [error]
    return []


def _device(params: Params, layout: Layout) -> Iterator[KdciError]:
    import torch

    name = params.runtime.device
    if not name.startswith("cuda"):
        return
    count = torch.cuda.device_count()
    if (torch.device(name).index or 0) >= count:
        what = f"{name} is not here, found {count} CUDA devices"
        yield UserError("runtime.device", what, "use auto or cpu")


def _dataset(params: Params, layout: Layout) -> Iterator[KdciError]:
    from kdci.data.datasets import check_dataset
    from kdci.data.labelled import Split

    data = params.data
    path = layout.root / data.path if data.path else None
    splits: list[Split] = ["train"] if data.test is None else ["train", data.test]
    yield from _raised(path or layout.root, check_dataset, data.name, path, splits)


def _open_worlds(params: Params, layout: Layout) -> Iterator[KdciError]:
    from kdci.data.open_world import check_open_world

    for method in (*params.grid.methods, *params.grid.controls):
        open_world = _open_world(params.method(method))
        if open_world is not None:
            path = _open_world_path(open_world, layout)
            yield from _raised(path or layout.root, check_open_world, open_world.source, path=path)


def _open_world(block: MethodBlock) -> OpenWorld | None:
    return getattr(block, "open_world", None)


def _open_world_path(open_world: OpenWorld, layout: Layout) -> Path | None:
    return layout.root / open_world.path if open_world.path else None


def _sizes(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Compare batches and clusters with how many images there will be."""
    yield from _teacher_batch(params)
    for method in (*params.grid.methods, *params.grid.controls):
        block = params.method(method)
        yield from _selection(method, block, layout)
        yield from _pool_size(params, method, block)
    yield from _shift_sizes(params)


def _teacher_batch(params: Params) -> Iterator[KdciError]:
    from kdci.data.datasets import load_split

    if params.data.path is None:  # bundled: counted in no time
        count = len(load_split(params.data.name, path=None, split="train").images)
        if params.teacher.batch_size > count:
            what = f"is {params.teacher.batch_size}, but {params.data.name} has {count} images"
            yield UserError("teacher.batch_size", what, f"at most {count}")


def _selection(method: str, block: MethodBlock, layout: Layout) -> Iterator[KdciError]:
    open_world, wanted = _open_world(block), getattr(block, "num_selected", None)
    if open_world is None or wanted is None:
        return
    available = _num_open_world(open_world, layout)
    if available is not None and wanted > available:
        what = f"is {wanted}, but the open world has {available} images"
        yield UserError(
            f"methods.{method}.num_selected", what, f"at most {available}, or enlarge the pool"
        )


def _num_open_world(open_world: OpenWorld, layout: Layout) -> int | None:
    """Return how many images there are to choose from at most, if that is quickly known."""
    from kdci.data.parquet import count_rows

    asked, path = open_world.num_images or None, _open_world_path(open_world, layout)
    if open_world.source != "parquet" or path is None:
        return asked
    try:
        rows = count_rows([file for file in path.rglob("*.parquet") if file.is_file()])
    except (KdciError, OSError):
        return asked  # told by the look at the open world itself
    return min(rows, asked) if asked and rows else asked or rows or None


def _pool_size(params: Params, method: str, block: MethodBlock) -> Iterator[KdciError]:
    made, at_first_step = block.num_pool_images, block.num_first_images
    kept = made - max(1, round(params.pool.holdout * made))
    if kept < 1:
        what = f"makes a pool of {made}, of which the hold-out leaves none"
        yield UserError(f"methods.{method}", what, "enlarge the pool")
        return
    wanted = params.dictionary.num_prototypes
    has_dictionary = method in params.grid.methods and params.dictionary.artifact is None
    if has_dictionary and wanted > kept:
        what = f"asks for {wanted} clusters, but {method} leaves {kept} predictions"
        yield UserError("dictionary.num_prototypes", what, f"at most {kept}, or a larger pool")
    batch, images = params.recipe(method).batch_size, kept + at_first_step
    if batch > images:
        what = f"is {batch}, but the first step finds {images} images"
        yield UserError(f"recipes.{method}.batch_size", what, f"at most {images}")


def _shift_sizes(params: Params) -> Iterator[KdciError]:
    """Compare the pools with a known shift with their batches, clusters and classes."""
    from kdci.data.known_shift import long_tail_counts

    if params.shift is None or not params.grid.shifts:
        return
    size, batch = params.shift.num_images, params.recipe(params.shift.base).batch_size
    if size < max(batch, params.dictionary.num_prototypes):
        least = max(batch, params.dictionary.num_prototypes)
        yield UserError(
            "shift.num_images", f"is {size}, less than a batch or N", f"at least {least}"
        )
    for name in params.grid.shifts:
        imbalance = params.shifts[name].imbalance
        try:
            long_tail_counts(size, params.data.spec.num_classes, imbalance)
        except ValueError as error:
            yield UserError(f"shifts.{name}", str(error), "enlarge shift.num_images")


def _other(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Check the other model's data, teacher and methods as those of the params are checked."""
    if params.grid.others:
        other = params.of_other()
        for check in (_dataset, _teachers, _batch_norm):
            yield from check(other, layout.other)


def _teachers(params: Params, layout: Layout) -> Iterator[KdciError]:
    for teacher in params.grid.teachers:
        path = layout.teacher(teacher)
        if path.exists():
            try:
                with storage_errors(path):
                    yield from _misfits(params, path, read_card(path, kind="teacher"))
            except KdciError as error:
                yield error


def _misfits(params: Params, path: Path, card: dict[str, Any]) -> Iterator[KdciError]:
    """Compare a teacher with the dataset, unless it is of other data and will be made anew."""
    made_for = card["params"].get("data", {}).get("name", params.data.name)
    spec = params.data.spec
    if made_for != spec.name:
        return
    for fact, value in (("num_classes", spec.num_classes), ("channels", spec.channels)):
        if card["facts"][fact] != value:
            what = f"the teacher has {card['facts'][fact]} {fact}, {spec.name} has {value}"
            yield UserError(str(path), what, "choose the dataset it was trained on in data.name")


def _batch_norm(params: Params, layout: Layout) -> Iterator[KdciError]:
    import torch

    from kdci.models import build_backbone
    from kdci.synthesis.inversion import require_batch_norm

    methods = [name for name in params.grid.methods if params.method(name).needs_batch_norm]
    spec = params.data.spec
    for method, teacher in product(methods, params.grid.teachers):
        with torch.device("meta"):  # layers without memory for their weights
            model = build_backbone(teacher, num_classes=spec.num_classes, channels=spec.channels)
        try:
            require_batch_norm(model, method, teacher)
        except UserError as error:
            yield error


def _dictionary(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Check an adopted dictionary: another experiment has to have made it."""
    if params.dictionary.artifact is None:
        return
    path = layout.root / params.dictionary.artifact
    try:
        with storage_errors(path):
            dimension = read_card(path, kind="dictionary")["facts"]["dimension"]
    except UserError as error:
        yield UserError("dictionary.artifact", str(error), "give the folder of a dictionary")
    except KdciError as error:
        yield error
    else:
        num_classes = params.data.spec.num_classes
        if params.compensation.fusion == "identity" and dimension != num_classes:
            what = (
                f"identity adds {dimension} dimensions of that dictionary to {num_classes} logits"
            )
            yield UserError("compensation.fusion", what, "use residual")
    for arm in {*params.grid.method_arms, *params.grid.shift_arms}:
        strata = params.intervention.strata if ARMS[arm].strata == "chosen" else ARMS[arm].strata
        if strata == "prototypes":
            what = (
                f"{arm} draws over the prototypes of the teacher's own dictionary, not of another's"
            )
            yield UserError("dictionary.artifact", what, "set it to null, or leave that arm out")


def summary(params: Params, layout: Layout) -> list[str]:
    """Return what `dvc repro` will make, in lines to print."""
    grid, stages = params.grid, planned_stages(params, layout)
    axes = {
        "teacher": grid.teachers,
        "student": grid.students,
        "method": grid.methods,
        "pool seed": grid.pool_seeds,
        "seed": grid.seeds,
    }
    factors = [_counted(len(values), axis) for axis, values in axes.items()]
    counts = Counter(stage.kind for stage in stages)
    made = [_counted(number, kind) for kind, number in counts.items()]
    in_place = sum(stage.is_in_place() for stage in stages)
    steps = [f"{method} {params.recipe(method).num_steps:,}" for method in grid.methods]
    controls = [cell.method for cell in control_cells(grid)]
    beside = f" and {_counted(len(controls), 'control')}" if controls else ""
    made_of = " x ".join([*factors, ", ".join(grid.method_arms)])
    shifted = len(list(shift_cells(grid)))
    beside += f" and {_counted(shifted, 'cell')} with a known shift" if shifted else ""
    return [
        f"ok: {len(list(cells(grid)))} cells ({made_of}){beside}",
        f"`dvc repro` makes {', '.join(made)} and the report of {params.preset}; "
        f"{in_place} of {len(stages)} artifacts are in place with these params",
        f"distillation steps a student: {', '.join(steps)}",
    ]


def _counted(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
