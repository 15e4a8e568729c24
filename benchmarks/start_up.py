"""What it takes until something is computed, and what `dvc repro` takes where nothing is to do.

    python -m benchmarks.start_up [--quick]

(a) Every kind of stage is started as DVC does and ends at its first step (``first_step.py``), in
turn with a process that imports torch alone; medians of the differences are told. (b) `dvc repro`
in a project that is up to date, in turn with two projects of DVC's own making: their stages write
files of a line, are written out in dvc.yaml, and depend on no params. The floor has as many stages
as the preset, each with as many dependencies and outputs as there: what DVC takes to look at them.
The other has one dependency and one output a stage: what dependencies themselves cost.

Projects are temporary. The one of (a) is built first, with a teacher and students of a few steps;
that of (b) holds made-up results of a whole preset, which `dvc commit` records.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kdci.graph.cells import CELLS_STAGE
from pipelines.graph.current import current_graph

ROOT = Path(__file__).resolve().parents[1]
CODE = ("kdci", "stages", "pipelines")
MOST_SECONDS = 3.0
"""Before the first step, beyond importing torch."""
MOST_TIMES = 1.5
"""`dvc repro` with nothing to do, of DVC's own for as many stages."""
FULL, QUICK = "digits", "digits-smoke"
METHOD = "fast"
_TORCH = "import sys, time, torch; print(time.time() - float(sys.argv[1]), time.process_time())"
_FABRICATE = """
import json
from pathlib import Path
from dvc.repo import Repo
stages = Repo(".").index.stages
for out in [Path(out.fs_path) for stage in stages for out in stage.outs]:
    names = ("card.json", "images.npy", "model.safetensors")
    files = [out] if out.suffix else [out / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(str(file))
print(json.dumps([[len(stage.deps), len(stage.outs)] for stage in stages]))
"""

_RUNNING = re.compile(r"Running stage '([^']+)'")

Shape = list[tuple[int, int]]
"""Of each stage, how many dependencies and outputs it has; the params of a stage are one."""
Taken = tuple[float, float]
"""Seconds by the clock, and seconds computed."""


def run(quick: bool) -> dict[str, Any]:
    """Return seconds before the first step, and of a `dvc repro` that does nothing.

    Args:
        quick: Whether a small preset is looked at, few times.
    """
    preset, repeats = (QUICK, 1) if quick else (FULL, 7)
    with tempfile.TemporaryDirectory() as folder:
        first_steps = _first_steps(Path(folder), preset, repeats)
        nothing = _nothing_to_do(Path(folder), preset, repeats)
    return {
        "preset": preset,
        "n": repeats,
        "first_step": first_steps,
        "nothing_to_do": nothing,
        "lines": [*_first_step_lines(first_steps), *_nothing_lines(nothing)],
        "claims": _claims(first_steps, nothing),
    }


# -- until the first step -----------------------------------------------------------------------


def _first_steps(folder: Path, preset: str, repeats: int) -> dict[str, Any]:
    root = _new_project(folder / "built", preset)
    cell = _shorten(root / "params.yaml")
    commands = _commands(**cell)
    for command in commands.values():
        _run([sys.executable, "-m", *command], root)
    starts: dict[str, Callable[[], Taken]] = {"torch": lambda: _started(["-c", _TORCH], [], root)}
    for name, command in commands.items():
        starts[name] = lambda command=command: _started(  # type: ignore[misc]
            ["-m", "benchmarks.first_step"], command, root
        )
    taken = _in_turn(starts, repeats)
    base = taken.pop("torch")
    return {
        "torch_seconds": statistics.median(seconds for seconds, _ in base),
        "stages": {
            name: {
                "seconds": statistics.median(seconds for seconds, _ in found),
                "beyond_torch": _beyond(found, base, 0),
                "computed_beyond_torch": _beyond(found, base, 1),
            }
            for name, found in taken.items()
        },
    }


def _beyond(found: Sequence[Taken], base: Sequence[Taken], clock: int) -> float:
    return statistics.median(
        one[clock] - torch[clock] for one, torch in zip(found, base, strict=True)
    )


def _shorten(file: Path) -> dict[str, str]:
    """Leave one small cell of a preset; return its teacher and student."""
    yaml = YAML()
    params = yaml.load(file)
    grid = params["grid"]
    grid.update(methods=[METHOD], controls=[], arms=[], seeds=grid["seeds"][:1])
    params["teacher"]["num_epochs"] = 1
    params["methods"][METHOD]["warmup_calls"] = 2
    params["recipes"][METHOD].update(num_epochs=1, steps_per_epoch=2)
    with file.open("w", encoding="utf-8") as out:
        yaml.dump(params, out)
    return {"teacher": grid["teachers"][0], "student": grid["students"][0]}


def _commands(*, teacher: str, student: str) -> dict[str, list[str]]:
    """Return every kind of stage's command by its name, parents first."""
    pool, pair = f"{teacher}-{METHOD}-0", f"{teacher}-{student}-{METHOD}"
    return {
        "teacher": ["stages.teacher", teacher],
        "substitute": ["stages.substitute", pool],
        "dictionary": ["stages.dictionary", pool],
        "distill_vanilla": ["stages.distill", f"{pair}-vanilla-0-0"],
        "distill_kdci": ["stages.distill", f"{pair}-kdci-0-0"],
        "evaluate": ["stages.evaluate", pair],
        "report": ["stages.report"],
    }


def _started(arguments: list[str], command: list[str], root: Path) -> Taken:
    """Start a process that prints what it took, and return it."""
    now = f"{time.time()}"
    # The project's own code, and this folder's benchmarks.
    path = os.pathsep.join([str(root), str(ROOT)])
    told = _run([sys.executable, *arguments, now, *command], root, PYTHONPATH=path)
    seconds, computed = told.split()[-2:]
    return float(seconds), float(computed)


# -- nothing to do ------------------------------------------------------------------------------


def _nothing_to_do(folder: Path, preset: str, repeats: int) -> dict[str, Any]:
    ours = _new_project(folder / "ours", preset)
    _run([sys.executable, "-m", "stages.cells"], ours)
    shape: Shape = json.loads(_run([sys.executable, "-c", _FABRICATE], ours))
    places = {
        "ours": ours,
        "floor": _plain_project(folder / "floor", shape),
        "one_dependency": _plain_project(folder / "one", [(1, 1)] * len(shape)),
    }
    for root in places.values():
        _run([sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], root)
    taken = _in_turn(
        {name: lambda root=root: _repro(root) for name, root in places.items()},  # type: ignore[misc]
        repeats,
    )
    medians = {
        name: [statistics.median(one[clock] for one in found) for clock in (0, 1)]
        for name, found in taken.items()
    }
    return {
        "num_stages": len(shape),
        "num_dependencies": sum(deps for deps, _ in shape),
        "num_outputs": sum(outs for _, outs in shape),
        "seconds": {name: seconds for name, (seconds, _) in medians.items()},
        "computed": {name: computed for name, (_, computed) in medians.items()},
        "times_floor": medians["ours"][0] / medians["floor"][0],
        "computed_times_floor": medians["ours"][1] / medians["floor"][1],
        "computed_times_one_dependency": medians["ours"][1] / medians["one_dependency"][1],
    }


def _plain_project(root: Path, shape: Shape) -> Path:
    """Write a project whose stages depend on shared files of a line, and on nothing else."""
    _init(root)
    stages = {}
    for number, (num_deps, num_outs) in enumerate(shape):
        # With one dependency a stage, each has its own; with many, as here, they are shared.
        first = number if num_deps == 1 else 0
        deps = [f"in/{first + i}.txt" for i in range(num_deps)]
        outs = [f"out/{number}-{i}.txt" for i in range(num_outs)]
        stages[f"stage{number}"] = {"cmd": "true", "deps": deps, "outs": outs}
        for name in (*deps, *outs):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(f"{name}\n", encoding="utf-8")
    with (root / "dvc.yaml").open("w", encoding="utf-8") as out:
        YAML(typ="safe", pure=True).dump({"stages": stages}, out)
    return root


def _repro(root: Path) -> Taken:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = _run([sys.executable, "-m", "dvc", "repro"], root)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if set(_RUNNING.findall(told)) - {CELLS_STAGE}:
        raise RuntimeError(f"there was something to do in {root}: {told[-2000:]}")
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, computed


# -- both -----------------------------------------------------------------------------------------


def _in_turn(actions: dict[str, Callable[[], Taken]], repeats: int) -> dict[str, list[Taken]]:
    """Return what each action takes, once not counted, then ``repeats`` times."""
    taken: dict[str, list[Taken]] = {name: [] for name in actions}
    for repeat in range(-1, repeats):
        for name, action in actions.items():
            found = action()
            if repeat >= 0:
                taken[name].append(found)
    return taken


def _new_project(root: Path, preset: str) -> Path:
    """Write this repository's code and a preset's params into a project of its own."""
    _init(root)
    skip = shutil.ignore_patterns("__pycache__")
    for folder in CODE:
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    for file in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / file, root)
    shutil.copy(ROOT / f"pipelines/presets/{preset}.yaml", root / "params.yaml")
    current_graph(root)
    return root


def _init(root: Path) -> None:
    (root / ".dvc").mkdir(parents=True)
    settings = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    (root / ".dvc" / "config").write_text(settings, encoding="utf-8")


def _run(command: Sequence[str], root: Path, **environment: str) -> str:
    """Run a command that has to succeed; return what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def _first_step_lines(found: dict[str, Any]) -> Iterator[str]:
    told = ", ".join(f"{name} {of['beyond_torch']:.1f} s" for name, of in found["stages"].items())
    yield (
        f"until the first step, beyond the {found['torch_seconds']:.1f} s of importing torch: "
        f"{told}"
    )


def _nothing_lines(found: dict[str, Any]) -> Iterator[str]:
    seconds = found["seconds"]
    yield (
        f"`dvc repro` with nothing to do, {found['num_stages']} stages with "
        f"{found['num_dependencies']:,} dependencies: {seconds['ours']:.1f} s; DVC's own for as "
        f"many stages, dependencies and outputs of a line {seconds['floor']:.1f} s, for as many "
        f"stages with one dependency each {seconds['one_dependency']:.1f} s"
    )


def _claims(first_steps: dict[str, Any], nothing: dict[str, Any]) -> list[dict[str, Any]]:
    slowest = max(of["beyond_torch"] for of in first_steps["stages"].values())
    return [
        {
            "name": "start-up: the slowest kind of stage before its first step, beyond torch",
            "value": slowest,
            "limit": MOST_SECONDS,
            "at_least": False,
            "unit": "s",
        },
        {
            "name": "`dvc repro` with nothing to do: times DVC's own for as many stages and files",
            "value": nothing["times_floor"],
            "limit": MOST_TIMES,
            "at_least": False,
            "unit": "x",
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a small preset, few timings")
    options = parser.parse_args(arguments)
    sys.stdout.write(json.dumps(run(options.quick), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
