"""What a diagnosis says, as lines, and a process that is no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from pipelines.checking.diagnosis.findings import Finding, Level


def lines(findings: Iterator[Finding] | list[Finding], *levels: Level) -> list[str]:
    return [one.line for one in findings if one.level in (levels or tuple(Level))]


def trouble(findings: Iterator[Finding]) -> list[str]:
    return lines(findings, Level.warning, Level.problem)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
