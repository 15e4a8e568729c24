"""The words of `kdci explain`: a few short lines for each stage, equal ones told together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from pipelines.explaining.costs import ExpectedTime
from pipelines.explaining.differences import Difference
from pipelines.explaining.explain import Cost, Explained, Explanation
from pipelines.explaining.forecast import Fate

_MAX_VALUE = 48
_MAX_NAMES = 6


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """Yield what a terminal shows."""
    if not explanation.stages:
        yield f"all {explanation.num_known} stages are up to date"
        return
    for block in _blocks(explanation.stages):
        yield from _block_lines(block)
        yield ""
    if explanation.following:
        yield "what follows may run; it is skipped where all it is made from comes out the same"
        yield from _following_lines(explanation.following)
        yield ""
    yield from _cost_lines(explanation.cost)


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def together(names: Sequence[str]) -> str:
    """Return names that begin alike in one piece: `evaluate@a-{fast,dfnd}`."""
    if len(names) == 1:
        return names[0]
    start = os.path.commonprefix(list(names))
    start = start[: max(start.rfind("-"), start.rfind("@")) + 1]
    rests = [name.removeprefix(start) for name in names]
    if len(rests) > _MAX_NAMES:
        rests = [*rests[: _MAX_NAMES - 1], f"... {len(names)} in all"]
    return f"{start}{{{','.join(rests)}}}"


# -- stages -----------------------------------------------------------------------------------


def _blocks(stages: Sequence[Explained]) -> Iterator[list[Explained]]:
    """Yield stages that are told together: of one entry, for the same reasons."""

    def reasons(one: Explained) -> tuple[str, ...]:
        return (one.group, one.fate, repr(one.differences), repr(one.follows_from))

    groups: dict[tuple[str, ...], list[Explained]] = {}
    for one in stages:
        groups.setdefault(reasons(one), []).append(one)
    for members in groups.values():
        if members[0].fate is Fate.up_to_date:  # what they are made from is not told together
            yield from ([one] for one in members)
        else:
            yield members


def _block_lines(block: Sequence[Explained]) -> Iterator[str]:
    first = block[0]
    count = f"{len(block)} stages, " if len(block) > 1 else ""
    yield f"{together([one.name for one in block])}: {count}{_FATES[first.fate]}"
    rows = [_difference_row(one) for one in first.differences]
    if first.fate is Fate.up_to_date:
        rows += _up_to_date_rows(first)
    elif first.follows_from:
        rows.append(("after", f"{_by_entry(first.follows_from)}, which changed", ""))
    if first.fate is not Fate.restored:
        rows.append(_time_row(block))
    yield from _aligned(rows)


_FATES = {
    Fate.up_to_date: "up to date",
    Fate.runs: "will run",
    Fate.restored: "will be restored from DVC's cache, without running",
    Fate.may_run: "may run",
}


def _difference_row(one: Difference) -> tuple[str, str, str]:
    if one.kind == "new":
        return "new", "never run here: dvc.lock does not know it", ""
    if one.kind == "command":
        return "command", f"{one.old} -> {one.new}", ""
    change = f"{_short(one.old)} -> {_short(one.new)}" if one.old and one.new else one.how
    if one.made_by:
        change += f", made by {_by_entry(one.made_by)}"
    return one.kind, one.subject, change


def _up_to_date_rows(one: Explained) -> Iterator[tuple[str, str, str]]:
    if one.follows_from:
        yield "after", f"{_by_entry(one.follows_from)}, given back as it was", ""
    yield from (("from", parent, "") for parent in one.made_from[:_MAX_NAMES])
    if len(one.made_from) > _MAX_NAMES:
        yield "", f"... {len(one.made_from)} stages in all", ""
    yield "params", ", ".join(one.inputs), ""
    yield "code", ", ".join(one.code), ""


def _time_row(block: Sequence[Explained]) -> tuple[str, str, str]:
    known = [one.expected_time for one in block if one.expected_time is not None]
    verb = "took" if block[0].fate is Fate.up_to_date else "takes"
    if not known:
        return verb, "unknown: no past run of it or its like left its time", ""
    total = f"about {duration(sum(one.seconds for one in known))}"
    if len(known) > 1:
        return verb, f"{total} in all ({_sources(known)})", ""
    return verb, f"{total} ({_source(known[0])})", ""


def _source(one: ExpectedTime) -> str:
    runs = "1 past run" if one.num_runs == 1 else f"median of {one.num_runs} past runs"
    before = ", ".join(str(number) for number in one.steps_before)
    scaled = f", scaled from {before} to {one.steps} steps" if one.steps else ""
    return f"{runs} of {one.kin}{scaled}"


def _sources(times: Sequence[ExpectedTime]) -> str:
    fewest = min(one.num_runs for one in times)
    most = max(one.num_runs for one in times)
    runs = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    word = "past run" if most == 1 else "past runs"
    kin = ", ".join(dict.fromkeys(one.kin for one in times))
    scaled = ", scaled by steps" if any(one.steps for one in times) else ""
    return f"{runs} {word} each of {kin}{scaled}"


def _following_lines(stages: Sequence[Explained]) -> Iterator[str]:
    rows = []
    for group in dict.fromkeys(one.group for one in stages):
        members, notes = [one for one in stages if one.group == group], []
        restored = sum(one.fate is Fate.restored for one in members)
        changed = sum(bool(one.differences) for one in members)
        for number, note in ((restored, "from the cache"), (changed, "changed itself")):
            if number:
                notes.append(note if number == len(members) else f"{number} {note}")
        known = [one.expected_time.seconds for one in members if one.expected_time is not None]
        time = duration(sum(known)) if known else "" if restored == len(members) else "unknown"
        rows.append((together([one.name for one in members]), time, ", ".join(notes)))
    yield from _aligned(rows)


def _cost_lines(cost: Cost) -> Iterator[str]:
    if not cost.num_stages:
        yield "nothing will run"
        return
    known = cost.num_stages - len(cost.unknown)
    line = f"in all: {_stages(cost.num_stages)}"
    if known:
        line += f", about {duration(cost.seconds)} one after another"
    if known and cost.limit > 1:
        line += f", {duration(cost.seconds_at_limit)} with {cost.limit} at a time"
    yield line
    if cost.unknown:
        yield f"not counted, for want of a past run's time: {_by_entry(cost.unknown)}"


# -- layout -----------------------------------------------------------------------------------


def _aligned(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    table = list(rows)
    first = max(len(row[0]) for row in table)
    second = max((len(row[1]) for row in table if row[2]), default=0)
    for row in table:
        yield f"  {row[0]:<{first}}  {row[1]:<{second}}  {row[2]}".rstrip()


def _by_entry(names: Sequence[str]) -> str:
    """Return the names of stages, those of one entry of dvc.yaml in one piece."""
    entries: dict[str, list[str]] = {}
    for name in names:
        entries.setdefault(name.partition("@")[0], []).append(name)
    return ", ".join(map(together, entries.values()))


def _stages(number: int) -> str:
    return "1 stage" if number == 1 else f"{number} stages"


def _short(value: str) -> str:
    return value if len(value) <= _MAX_VALUE else f"{value[: _MAX_VALUE - 3]}..."
