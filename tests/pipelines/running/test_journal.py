"""The journal: whole lines whoever writes, and what a crash cut short costs no other line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdci.store import artifacts
from kdci.store.layout import Layout
from pipelines.running import journal
from pipelines.running.journal import Execution
from pipelines.running.stage_process import Outcome, State

DONE = Execution(
    stage="teacher@wrn-10-1",
    outcome="completed",
    runner="prefect",
    started=1_700_000_000.5,
    seconds=3.25,
    card="ab" * 32,
    links={"prefect.flow_run_id": "f-1"},
)
FAILED = replace(DONE, outcome="failed", exit_code=5, card="", links={})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, "digits-smoke")


def start(code: str, layout: Layout) -> subprocess.Popen[str]:
    """Run code that knows ``layout`` in another process."""
    head = (
        "import resource; from pathlib import Path; from kdci.errors import StorageError\n"
        "from kdci.store.layout import Layout; from pipelines.running import journal\n"
        "from pipelines.running.journal import Execution\n"
        f"layout = Layout(Path({str(layout.root)!r}), 'digits-smoke')\n"
    )
    return subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True)


def test_lines_come_back_in_their_order(layout: Layout) -> None:
    assert journal.read(layout) == []
    journal.append(layout, DONE)
    journal.append(layout, FAILED)
    assert journal.read(layout) == [DONE, FAILED]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_line_cut_short_costs_itself_alone(layout: Layout, cut: int) -> None:
    journal.append(layout, DONE)
    file = layout.work / journal.JOURNAL
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:cut])  # -1: all but the end of the line
    journal.append(layout, FAILED)
    assert journal.read(layout) == ([DONE, DONE, FAILED] if cut == -1 else [DONE, FAILED])


def test_lines_of_no_execution_are_left_out(layout: Layout) -> None:
    journal.append(layout, DONE)
    with (layout.work / journal.JOURNAL).open("ab") as file:
        file.write(b'3\nnull\n[]\n{}\n{"stage": "a", "future": 1}\n\xff\xfe\n\n')
    journal.append(layout, FAILED)
    assert journal.read(layout) == [DONE, FAILED]


def test_several_processes_write_whole_lines(layout: Layout) -> None:
    code = (
        "for number in range(60):\n"
        "    links = {'n': str(number), 'long': 'x' * 3000}\n"
        "    done = Execution('a', 'completed', 'ray', 1.0, 2.0, links=links)\n"
        "    journal.append(layout, done)\n"
    )
    writers = [start(code, layout) for _ in range(4)]
    assert [writer.communicate() for writer in writers] == [("", None)] * 4
    found = journal.read(layout)
    assert sorted(int(one.links["n"]) for one in found) == sorted(list(range(60)) * 4)
    # An empty line, put where another's line seemed cut short, is no harm.
    lines = (layout.work / journal.JOURNAL).read_bytes().splitlines()
    assert sum(bool(line) for line in lines) == 240


def test_a_full_disk_is_told_and_costs_no_other_line(layout: Layout) -> None:
    journal.append(layout, DONE)
    size = (layout.work / journal.JOURNAL).stat().st_size
    code = (
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 30}, -1))\n"
        "try:\n"
        "    journal.append(layout, Execution('b', 'completed', 'ray', 1.0, 2.0))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    assert journal.JOURNAL in start(code, layout).communicate()[0]
    assert (layout.work / journal.JOURNAL).stat().st_size == size + 30  # a part was written
    journal.append(layout, FAILED)
    assert journal.read(layout) == [DONE, FAILED]


def test_what_a_stage_left_is_noted_by_its_card(layout: Layout, tmp_path: Path) -> None:
    with artifacts.new_artifact(tmp_path / "pool", kind="pool", card={}) as draft:
        draft.save_json("a.json", 1)
    stated = artifacts.read_card(tmp_path / "pool", kind="pool")["card_sha256"]

    def noted(place: str, kind: str, state: State = State.completed) -> str:
        node: Any = SimpleNamespace(artifact=tmp_path / place, kind=kind, stage="s", fields={})
        journal.note(layout, Outcome("a", state), node, runner="plain", links={})
        return journal.read(layout)[-1].card

    assert noted("pool", "pool") == stated != ""
    assert noted("pool", "pool", State.failed) == ""
    assert noted("pool", "teacher") == ""
    assert noted("nothing", "pool") == ""
    (tmp_path / "pool" / "card.json").write_text("{")
    assert noted("pool", "pool") == ""
