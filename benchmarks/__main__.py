"""Everything that is claimed of the project's speed, measured: ``make bench``.

    python -m benchmarks                          # all of it; 12 minutes on two cores with bf16
    python -m benchmarks --only kd_step           # some of it
    python -m benchmarks --only kd_step/fast      # cases whose names begin so
    python -m benchmarks --quick                  # tiny networks: that it runs, and no more
    python -m benchmarks --data FOLDER            # with a pool of photographs to score
    python -m benchmarks --check                  # measure nothing; 1 if a claim is not met

    python -m benchmarks --compile teacher        # another setting; kept beside the default's

Each result replaces the one of its name in benchmarks/results.json, and the tables of
docs/performance.md follow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import catalogue, page, results
from benchmarks.claims import claims
from benchmarks.compensation_cost import environment
from benchmarks.measuring import measure
from benchmarks.way_process import started
from kdci.config.params import Runtime as Settings


def selected(only: Sequence[str], name: str) -> bool:
    """Tell whether a case, or a benchmark of its own, is among those asked for."""
    return not only or any(name == each or name.startswith(f"{each}/") for each in only)


def run(options: argparse.Namespace) -> None:
    """Measure what is asked for, one result after the other; each is kept at once."""
    settings = settings_of(options)
    runtime = started(settings, keep_memory=options.keep_memory)
    facts = {
        **environment(runtime),
        "settings": settings.model_dump(mode="json"),
        "date": results.today(),
    }
    others = changed(settings) if options.keep_memory else [*changed(settings), "keep_memory=False"]
    suffix = "".join(f"/{each}" for each in others)
    with tempfile.TemporaryDirectory() as decided:
        for case in catalogue.step_cases(quick=options.quick):
            if selected(options.only, case.key):
                result = measure(
                    case,
                    runtime,
                    settings=settings,
                    decided=Path(decided),
                    repeats=options.repeats,
                    quick=options.quick,
                    keep_memory=options.keep_memory,
                )
                _say(case.key + suffix, result)
                _keep(options, {results.STEPS: {case.key + suffix: {**result, **facts}}})
    for name in catalogue.MODULES:
        if selected(options.only, name):
            result = catalogue.run_module(
                name, quick=options.quick, data=options.data, teacher=options.teacher
            )
            sys.stdout.write(page.block(name, {name: result}))
            _keep(options, {name: {**facts, **result}})


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the params block `runtime` that the options stand for."""
    given = {name: getattr(options, name) for name in Settings.model_fields}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def changed(settings: Settings) -> list[str]:
    """Return what of the settings differs from the defaults and is no matter of the machine."""
    defaults = Settings()
    names = ("precision", "memory_format", "fold_teacher", "compile")
    return [
        f"{name}={getattr(settings, name)}"
        for name in names
        if getattr(settings, name) != getattr(defaults, name)
    ]


def _say(key: str, result: dict[str, Any]) -> None:
    times = ", ".join(f"{way} {each['median']:.1f} ms" for way, each in result["ms"].items())
    ratios = ", ".join(f"{way} {ratio:.2f} x plain" for way, ratio in result["times_plain"].items())
    share = 100 * result["share_of_bound"]["project"]
    sys.stdout.write(f"{key}: {times}; {ratios}, {share:.0f} % of the bound\n")
    sys.stdout.flush()


def _keep(options: argparse.Namespace, changed: results.Results) -> None:
    if options.out is None:
        return
    merged = results.merge(options.out, changed)
    if options.page is not None:
        page.write(options.page, merged)


def check(file: Path) -> int:
    """Print every claim; return 1 if one is not met."""
    found = list(claims(results.read(file)))
    for claim in found:
        value = "" if claim.value is None else f" {claim.value:.3g} {claim.unit}"
        sys.stdout.write(f"{claim.verdict:<8} {claim.name}{value}\n")
    return 1 if any(claim.met is False for claim in found) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure what is claimed of the project's speed."
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="tiny networks, nothing is written")
    parser.add_argument("--repeats", type=int, help="timings of each, at least 2")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    parser.add_argument("--device", help="auto, cpu or cuda:N")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--memory-format", choices=("auto", "contiguous", "channels_last"))
    parser.add_argument("--fold-teacher", action=argparse.BooleanOptionalAction)
    parser.add_argument("--compile", choices=("none", "teacher", "both"))
    parser.add_argument(
        "--no-keep-memory",
        dest="keep_memory",
        action="store_false",
        help="the allocator as it comes",
    )
    parser.add_argument("--data", type=Path, help="Parquet files that pool_scoring scores")
    parser.add_argument("--teacher", type=Path, help="the WRN-16-2 it scores them with")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results.json")
    parser.add_argument("--check", action="store_true", help="only tell which claims are met")
    options = parser.parse_args(arguments)
    if options.repeats is not None and options.repeats < 2:
        parser.error("--repeats must be at least 2")
    names = [*catalogue.MODULES, *(case.key for case in catalogue.step_cases(quick=options.quick))]
    for asked in options.only:
        if not any(selected([asked], name) for name in names):
            parser.error(f"--only {asked}: one of {', '.join(catalogue.NAMES)}, or a case below")
    if options.check:
        return check(options.out or results.FILE)
    options.page = page.PAGE if options.out is None and not options.quick else None
    if options.out is None and not options.quick:
        options.out = results.FILE
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
