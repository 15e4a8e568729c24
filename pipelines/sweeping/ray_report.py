"""What Ray writes of a failed trial, in a line."""

from __future__ import annotations

import re

_FAILURE = "Failure # "
_ERROR = re.compile(r"^[\w.]*(Error|Exception)\b")


def reason(report: str) -> str:
    """Return why the last attempt failed; "": nothing is said.

    Args:
        report: Ray's file: for each failure a line that begins it, then a traceback or a notice.
    """
    lines = [line.strip() for line in report.rpartition(_FAILURE)[2].splitlines()[1:]]
    lines = [line for line in lines if line]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines[:1] or [""])[-1][:300]
