"""docs/cluster.md as a script: its blocks, and the machines that run them, all of them here.

A block begins with a comment that names its machine. What a reader has to choose, names in
capitals, ports, paths, is replaced by values that are safe here; a command that this leaves
pointing anywhere else is an error, and so is a replacement that the page no longer needs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

COMMAND_SECONDS = 240.0
READY_SECONDS = 120.0
END_SECONDS = 60.0
SAMPLE_SECONDS = 2.0
FILE = "file"
"""In the place of a machine: the block is a file, named after it."""


@dataclass(frozen=True)
class Block:
    """A fenced block of the page.

    Attributes:
        line: Where it is.
        machine: Where its commands are typed, or ``FILE``.
        note: What else its first line says; of a file its name.
        lines: The commands, one each, or the lines of the file.
    """

    line: int
    machine: str
    note: str
    lines: tuple[str, ...]


def read_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    found = []
    for match in re.finditer(r"^```[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        first, _, rest = match[1].partition("\n")
        heading = re.fullmatch(r"# (\w+)[: ]?\s*(.*)", first)
        assert heading, f"line {line}: the block names no machine: {first!r}"
        lines = [one for one in rest.replace("\\\n", " ").splitlines() if one.strip()]
        found.append(Block(line, heading[1], heading[2], tuple(lines)))
    return found


class Replacements:
    """What a reader has to choose, and what is chosen here.

    Args:
        values: By text of the page. Longer ones go first.
        root: The folder below which all paths must lie afterwards.
    """

    def __init__(self, values: Mapping[str, str], root: Path) -> None:
        self._values = dict(sorted(values.items(), key=lambda item: -len(item[0])))
        self._root = root
        self._used: set[str] = set()

    def __call__(self, line: str) -> str:
        """Return a line with everything replaced.

        Raises:
            AssertionError: Something in it is still the reader's to choose.
        """
        pattern = "|".join(rf"(?<!\w){re.escape(text)}(?!\w)" for text in self._values)
        self._used |= set(re.findall(pattern, line))
        replaced = re.sub(pattern, lambda match: self._values[match[0]], line)
        assert not self.strangers(replaced), f"{line}: unknown here: {self.strangers(replaced)}"
        return replaced

    @property
    def unused(self) -> set[str]:
        """What the page did not name so far."""
        return set(self._values) - self._used

    def strangers(self, line: str) -> list[str]:
        """Return what in a command points outside of what the test has set up."""
        known = set(self._values.values())
        capitals = re.findall(r"(?<![\w$])[A-Z][A-Z_]{2,}\b(?!=)", line)
        ports = re.findall(r"(?:\w:|[Pp]ort[= ])(\d{2,5})\b", line)
        addresses = re.findall(r"\d+(?:\.\d+){3}", line)
        paths = re.findall(r"(?<![\w/:.~-])/(?!/)[^\s)]*", line.replace("=/", " /"))
        return [
            *(word for word in capitals if word not in known),
            *(port for port in ports if port not in known),
            *(address for address in addresses if not address.startswith("127.")),
            *(path for path in paths if not path.startswith(str(self._root))),
        ]


@dataclass(frozen=True)
class Listener:
    """A process that waits for connections."""

    machine: str
    process: str
    ip: str


class Watch:
    """Looks every two seconds at all that the machines run, until it is told to end.

    Attributes:
        seen: Every process that was there.
        listeners: Who waited for connections, and on which address.
        command_lines: Of every process.
    """

    def __init__(self, machines: Mapping[str, Machine]) -> None:
        self._machines = machines
        self.seen: set[psutil.Process] = set()
        self.listeners: set[Listener] = set()
        self.command_lines: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_again, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _look_again(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            for name, machine in self._machines.items():
                for process in machine.processes():
                    with suppress(psutil.Error):
                        self._look(name, process)

    def _look(self, machine: str, process: psutil.Process) -> None:
        self.seen.add(process)
        words = " ".join(process.cmdline())
        self.command_lines.add(words)
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                self.listeners.add(Listener(machine, words, connection.laddr.ip))


class Machine:
    """A shell that keeps its variables and its folder from one command to the next.

    Args:
        environment: Its first variables.
        folder: Where it starts.
        logs: Where the output of what stays in the foreground goes.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path, logs: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = dict(environment)
        self._folder = folder
        self._logs = logs
        self._state = logs / f"{logs.name}.{id(self)}.state"
        self._running: list[subprocess.Popen[str]] = []

    def run(self, command: str, *, typed: str = "", fails: bool = False) -> str:
        """Run a command to its end and return what it says.

        Args:
            command: A line of bash.
            typed: What is typed when it asks.
            fails: Whether it is to fail.
        """
        keep = 'eval "$1"; code=$?; env -0 >"$2"; exit $code'
        process = self._start(["bash", "-c", keep, "bash", command, str(self._state)], None)
        try:
            said, _ = process.communicate(typed, timeout=COMMAND_SECONDS)
        finally:
            _end_group(process)
            self._running.remove(process)
        assert (process.returncode != 0) == fails, f"{command}: {process.returncode}\n{said}"
        pairs = [pair.partition("=") for pair in self._state.read_text().split("\0") if pair]
        self._environment = {name: value for name, _, value in pairs}
        self._folder = Path(self._environment["PWD"])
        return said

    def stay(self, command: str, ready: str) -> subprocess.Popen[str]:
        """Start a command that stays in the foreground; return when it has said ``ready``."""
        log = self._logs / f"{len(list(self._logs.iterdir()))}.log"
        process = self._start(["bash", "-c", f"exec {command}"], log)
        deadline = time.monotonic() + READY_SECONDS
        while ready not in log.read_text():
            assert process.poll() is None, f"{command}: {process.returncode}\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{command}: not ready\n{log.read_text()}"
            time.sleep(0.1)
        return process

    def stop(self, number: int) -> list[int]:
        """Send a signal to what stays in the foreground; return how each ended, newest first."""
        codes = []
        for process in reversed(self._running):
            process.send_signal(number)
            codes.append(process.wait(END_SECONDS))
        self._running.clear()
        return codes

    def kill(self) -> None:
        """End everything, whatever a test found."""
        for process in self._running:
            tree = list(_tree(process.pid))
            for one in tree:
                with suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(tree, timeout=10)
            process.wait()
        self._running.clear()

    def processes(self) -> list[psutil.Process]:
        """Return what runs here now."""
        return [one for process in list(self._running) for one in _tree(process.pid)]

    def _start(self, words: Sequence[str], log: Path | None) -> subprocess.Popen[str]:
        out = subprocess.PIPE if log is None else log.open("w")
        process = subprocess.Popen(
            words,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.PIPE if log is None else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # no terminal that could be asked for a password
            preexec_fn=_hear_interrupts,
        )
        self._running.append(process)
        return process


def _hear_interrupts() -> None:
    """Undo what a shell does to the commands that it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tree(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


# -- PostgreSQL ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PostgresTools:
    """Where PostgreSQL's own programs are, and who may run its server.

    Attributes:
        folder: Of the programs.
        user: The user, where this one is root, which it refuses.
    """

    folder: Path
    user: str | None

    def call(self, name: str, *arguments: str) -> list[str]:
        return [str(self.folder / name), *arguments]
