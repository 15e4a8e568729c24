"""Commands that run stages: on this machine, as trials of Ray Tune, or as a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from kdci.errors import UserError
from pipelines.commands.shared import numbers, project_root

_Targets = Annotated[
    list[str] | None,
    Argument(help="Stages, entries of dvc.yaml or patterns; none: everything."),
]
_NoTrack = Annotated[bool, Option("--no-track", help="Leave the record in MLflow to `kdci sync`.")]


def run_pipeline(
    context: typer.Context,
    targets: _Targets = None,
    preset: Annotated[str | None, Option(help="Make params.yaml this preset's first.")] = None,
    seeds: Annotated[
        str | None, Option(help="Student seeds to put in params.yaml first: 0,1,2.")
    ] = None,
    limit: Annotated[
        int | None, Option(help="Stages at work at a time; else what the cores carry.")
    ] = None,
    no_prefect: Annotated[
        bool, Option("--no-prefect", help="Do the same without Prefect.")
    ] = False,
    no_track: _NoTrack = False,
    serve: Annotated[
        bool, Option("--serve", help="Run what is started in Prefect's UI, until Ctrl-C.")
    ] = False,
) -> None:
    """Run the stages that are not up to date, shown in Prefect and recorded in MLflow."""
    root = project_root(context)
    if serve:
        from pipelines.serving.models import serve_flow

        if no_prefect or no_track:
            what = "leaves out what --serve is for" if no_prefect else "is no choice of --serve"
            raise UserError("--no-prefect" if no_prefect else "--no-track", what, "leave it out")
        defaults = {"preset": preset, "targets": targets, "seeds": numbers(seeds), "limit": limit}
        raise typer.Exit(serve_flow(root, defaults))
    from pipelines.running.run_command import run_stages

    code = run_stages(
        root,
        targets=targets or (),
        preset=preset,
        seeds=numbers(seeds),
        limit=limit,
        prefect=not no_prefect,
        track=not no_track,
    )
    raise typer.Exit(code)


def sweep(
    context: typer.Context,
    targets: _Targets = None,
    address: Annotated[
        str | None,
        Option(help="HOST:PORT of a Ray cluster, or auto; else RAY_ADDRESS, else our own."),
    ] = None,
    cpus_per_trial: Annotated[
        float | None, Option(help="Cores a trial; else the stages' threads.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, Option(help="GPUs a trial, or a share of one; else 1 if there is one.")
    ] = None,
    max_concurrent: Annotated[
        int | None, Option(help="Trials at a time; else as many as fit.")
    ] = None,
    max_failures: Annotated[
        int, Option(help="How often a trial whose worker died is started again.")
    ] = 3,
    allow_no_token: Annotated[
        bool, Option("--allow-no-token", help="Accept a Ray cluster that asks for no token.")
    ] = False,
    no_track: _NoTrack = False,
    search: Annotated[
        Path | None,
        Option(help="Search hyper-parameters instead: a YAML file of keys and distributions."),
    ] = None,
    space: Annotated[
        list[str] | None,
        Option(help="Search: one more KEY=DISTRIBUTION; uniform, loguniform, int or choice."),
    ] = None,
    trials: Annotated[int, Option(help="Search: distinct trials in all.")] = 16,
    name: Annotated[
        str | None, Option(help="Search: its name; else made from what is searched.")
    ] = None,
    criterion: Annotated[
        str, Option(help="Search: agreement, or accuracy:SPLIT; never the test split.")
    ] = "agreement",
    scheduler: Annotated[str, Option(help="Search: asha, or none.")] = "asha",
    searcher: Annotated[str, Option(help="Search: tpe, or random.")] = "tpe",
    search_seed: Annotated[int, Option(min=0, help="Search: seed of the searcher.")] = 0,
    grace: Annotated[int, Option(help="Search: scores before a trial can be stopped early.")] = 1,
    reduction: Annotated[
        int, Option(help="Search: one in so many trials goes on at each rung.")
    ] = 2,
    method: Annotated[str | None, Option(help="Search: method or known shift.")] = None,
    variant: Annotated[str | None, Option(help="Search: the arm; else kdci.")] = None,
    teacher: Annotated[str | None, Option(help="Search: teacher backbone.")] = None,
    student: Annotated[str | None, Option(help="Search: student backbone.")] = None,
    pool_seeds: Annotated[
        str | None, Option(help="Search: pools of a trial, 0,1; else the grid's first.")
    ] = None,
    seeds: Annotated[
        str | None, Option(help="Search: student seeds of a trial; else the grid's first.")
    ] = None,
) -> None:
    """Run the stages that are not up to date as trials of Ray Tune, over devices and machines.

    With --search or --space it searches hyper-parameters instead, and `kdci promote` writes the
    best ones to params.yaml.
    """
    if search is not None or space:
        from pipelines.searching.command import search_space
        from pipelines.searching.options import SearchOptions

        if targets:
            what = "stages are of no use to a search, which runs those of one student"
            raise UserError(" ".join(targets), what, "give --method and --variant")
        wanted = SearchOptions(
            space=search,
            keys=space or (),
            num_trials=trials,
            name=name,
            criterion=criterion,
            scheduler=scheduler,
            searcher=searcher,
            seed=search_seed,
            grace=grace,
            reduction=reduction,
            method=method,
            variant=variant,
            teacher=teacher,
            student=student,
            pool_seeds=numbers(pool_seeds, "--pool-seeds"),
            seeds=numbers(seeds),
            limit=max_concurrent,
            cpus=cpus_per_trial,
            gpus=gpus_per_trial,
            max_failures=max_failures,
        )
        root = project_root(context)
        code = search_space(
            root, wanted, address=address, allow_no_token=allow_no_token, track=not no_track
        )
        raise typer.Exit(code)
    _require_no_search_option(context)
    from pipelines.sweeping.sweep import Sweep

    grid = Sweep(
        project_root(context),
        targets or (),
        address,
        cpus_per_trial,
        gpus_per_trial,
        max_concurrent,
        max_failures,
        allow_no_token,
        track=not no_track,
    )
    raise typer.Exit(grid.run())


def _require_no_search_option(context: typer.Context) -> None:
    """Refuse what only a search reads, where none is asked for."""
    first = context.command.params
    names = [p.name for p in first if (getattr(p, "help", None) or "").startswith("Search: ")]
    for option in names:
        if str(context.get_parameter_source(option or "")).endswith("COMMANDLINE"):
            given = f"--{(option or '').replace('_', '-')}"
            raise UserError(given, "is an option of a search", "give --search or --space as well")


def promote(
    context: typer.Context,
    run: Annotated[
        str, Argument(help="A search for its best trial, SEARCH/TRIAL, or a trial's id.")
    ],
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be written.")] = False,
) -> None:
    """Write the values of a search's trial to params.yaml, comments kept."""
    from pipelines.searching.command import promote_run

    promote_run(project_root(context), run, dry_run=dry_run)
