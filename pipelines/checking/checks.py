"""What `kdci check` does: find what would stop `dvc repro`, all of it at once, running nothing.

Params are validated before (``kdci.config.params_file.load_params``); here they meet the machine,
the data and the artifacts that are in place. torch is loaded when a check needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from kdci.config.catalog import stem_for
from kdci.config.open_world import OpenWorld
from kdci.config.params import Params
from kdci.deconfounding.arms import ARMS
from kdci.errors import CombinedUserError, KdciError, UserError
from kdci.graph.build import graph_of
from kdci.graph.standing import is_in_place
from kdci.store.artifacts import read_card, storage_errors
from kdci.store.layout import Layout, cells, control_cells, shift_cells
from kdci.substitution.block import MethodBlock
from pipelines.importing.check import check_teacher_artifact
from pipelines.params.spelled_out import check_spelled_out


def find_problems(params: Params, layout: Layout) -> list[KdciError]:
    """Return everything that would stop the pipeline, as far as a quick look can tell, once."""
    checks = (
        *(_device, _dataset, _open_worlds, _sizes, _teachers, check_teacher_artifact),
        *(_networks, _dictionary, _other, check_spelled_out),
    )
    problems = [problem for check in checks for problem in check(params, layout)]
    # Two methods may choose from one open world.
    return list({tuple(problem.lines()): problem for problem in problems}.values())


def require_no_problems(params: Params, layout: Layout, *, leave_out: Sequence[str] = ()) -> None:
    """Find what would stop a stage before any has run.

    Args:
        params: The params.
        layout: Their places.
        leave_out: Params keys that somebody else answers for.

    Raises:
        KdciError: The first that is no user's mistake, else all mistakes at once.
    """
    problems = [p for p in find_problems(params, layout) if p.subject not in leave_out]
    mistakes = [problem for problem in problems if isinstance(problem, UserError)]
    for problem in problems:
        if not isinstance(problem, UserError):
            raise problem
    if mistakes:
        raise CombinedUserError(mistakes)


def _raised(
    place: Path, look: Callable[..., object], /, *args: Any, **kwargs: Any
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
    from kdci.data.datasets.labelled import Split
    from kdci.data.datasets.loading import check_dataset

    data = params.data
    path = layout.root / data.path if data.path else None
    # A teacher that is adopted was trained elsewhere: nobody opens the training images here.
    splits: list[Split] = [] if params.teacher.artifact else ["train"]
    splits += [] if data.test is None else [data.test]
    if splits or data.spec.bundled:
        yield from _raised(path or layout.root, check_dataset, data.spec, path, splits)


def _open_worlds(params: Params, layout: Layout) -> Iterator[KdciError]:
    from kdci.data.open_world.candidates import list_part, parts_of
    from kdci.data.open_world.scoring_engine import find_engine

    for method in (*params.grid.methods, *params.grid.controls):
        open_world = getattr(params.method(method), "open_world", None)
        if open_world is None:
            continue
        key = f"methods.{method}.open_world.engine"
        yield from _raised(layout.root, find_engine, open_world.engine, key)
        for number, part in enumerate(parts_of(open_world, layout.root)):
            place, side = part.path or layout.root, params.data.spec.image_size
            for error in _raised(place, list_part, part, image_size=side):
                yield _of_part(error, method, number) if open_world.sources else error


def _of_part(error: KdciError, method: str, number: int) -> KdciError:
    """Return the error with the key of the part that it is about: several paths look alike."""
    key = f"methods.{method}.open_world.sources.{number}.path"
    return type(error)(key, f"{error.subject}: {error.what}", error.fix)


def _sizes(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Compare batches and clusters with how many images there will be."""
    yield from _teacher_batch(params)
    methods = (*params.grid.methods, *params.grid.controls)
    for method, teacher in product(methods, params.grid.teachers):
        block = params.method(method, teacher=teacher)
        yield from _selection(method, block, layout)
        yield from _pool_size(params, method, block)
    yield from _shift_sizes(params)


def _teacher_batch(params: Params) -> Iterator[KdciError]:
    from kdci.data.datasets.loading import load_split

    # Bundled: counted in no time.
    if params.data.spec.bundled and params.teacher.artifact is None:
        count = len(load_split(params.data.spec, path=None, split="train").images)
        if params.teacher.batch_size > count:
            what = f"is {params.teacher.batch_size}, but {params.data.name} has {count} images"
            yield UserError("teacher.batch_size", what, f"at most {count}")


def _selection(method: str, block: MethodBlock, layout: Layout) -> Iterator[KdciError]:
    open_world = getattr(block, "open_world", None)
    wanted = getattr(block, "num_selected", None)
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
    from kdci.data.open_world.candidates import list_part, parts_of

    asked = open_world.num_images or None
    try:
        found = sum(list_part(part).wanted for part in parts_of(open_world, layout.root))
    except (KdciError, OSError):
        return asked  # told by the look at the open world itself
    return min(found, asked or found)


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
    from kdci.deconfounding.known_shift import long_tail_counts

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
        for check in (_dataset, _teachers, check_teacher_artifact, _networks):
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


def _networks(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Build every network without memory for its weights, and look for what methods need."""
    from kdci.models import outline_backbone
    from kdci.synthesis.inversion import require_batch_norm

    grid, spec = params.grid, params.data.spec
    stem = stem_for(params.backbone.stem, spec.image_size)
    methods = [name for name in grid.methods if params.method(name).needs_batch_norm]
    for backbone in dict.fromkeys(chain.from_iterable(grid.all_pairs)):
        try:
            model = outline_backbone(backbone, spec, stem=stem)
            for method in methods if backbone in grid.teachers else ():
                require_batch_norm(model, method, backbone)
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
    grid, graph = params.grid, graph_of(params, layout.root)
    pairs: dict[str, Sequence[Any]] = {"teacher": grid.teachers, "student": grid.students}
    axes = {
        **({"pair": grid.pairs} if grid.pairs else pairs),
        "method": grid.methods,
        "pool seed": grid.pool_seeds,
        "seed": grid.seeds,
    }
    factors = [counted(len(values), axis) for axis, values in axes.items()]
    counts = Counter(node.kind for node in graph.makers)
    made = [counted(number, kind) for kind, number in counts.items()]
    in_place = sum(is_in_place(graph, node) for node in graph.makers)
    steps = [f"{method} {params.recipe(method).num_steps:,}" for method in grid.methods]
    scaled = "" if params.budget == 1 else f" (at budget {params.budget:g})"
    controls = [cell.method for cell in control_cells(grid)]
    beside = f" and {counted(len(controls), 'control')}" if controls else ""
    made_of = " x ".join([*factors, ", ".join(grid.method_arms)])
    shifted = len(list(shift_cells(grid)))
    beside += f" and {counted(shifted, 'cell')} with a known shift" if shifted else ""
    return [
        f"ok: {len(list(cells(grid)))} cells ({made_of}){beside}",
        f"`dvc repro` makes {', '.join(made)} and the report of {params.preset}; "
        f"{in_place} of {len(graph.makers)} artifacts are in place with these params",
        f"distillation steps a student: {', '.join(steps)}{scaled}",
    ]


def counted(number: int, noun: str) -> str:
    """Return `1 pool`, `2 dictionaries`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
