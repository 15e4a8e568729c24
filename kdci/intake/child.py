"""``python -m kdci.intake.child``: read the checkpoint on stdin, leave its tensors here.

Runs in a folder of its own that the parent takes ``tensors.safetensors`` and ``report.json``
from; a refusal is in the report. Everything heavy is imported once the cheap checks passed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from kdci.errors import IntegrityError, KdciError, StorageError
from kdci.intake.limits import MAX_FILE_BYTES, MIB, limit_process, locked_down, memory_for

TENSORS_FILE, REPORT_FILE = "tensors.safetensors", "report.json"
_COPIES = 12
"""The file's archive written anew, its tensors, these as float32, and twice what is written:
of float16 the last three are twice as large as the file."""


def main() -> int:
    """Read, write, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kdci.intake.child", allow_abbrev=False)
    parser.add_argument("--subject", required=True, help="name of the file, for messages")
    parser.add_argument("--sha256", required=True, help="of the bytes on stdin")
    parser.add_argument("--key", help="where the state dict is")
    arguments = parser.parse_args()
    limit_process()
    try:
        report = _read(arguments.subject, key=arguments.key, sha256=arguments.sha256)
    except KdciError as error:
        return _refuse(error)
    except OSError as error:
        what = f"its tensors can not be written: {error.strerror}"
        return _refuse(StorageError("", what, "free space, or set TMPDIR"))
    except (MemoryError, RuntimeError) as error:
        # torch has a word of its own for it.
        words = r"allocate memory|not enough memory|out of memory"
        if isinstance(error, RuntimeError) and not re.search(words, str(error)):
            raise
        what = "needs more memory than reading a checkpoint of its size may take"
        return _refuse(IntegrityError("", what, "save the state dict alone"))
    _write(report)
    return 0


def _read(subject: str, *, key: str | None, sha256: str) -> dict[str, Any]:
    # As many as there are: for a larger number, room would be taken for all of them.
    data = sys.stdin.buffer.read(min(os.fstat(0).st_size, MAX_FILE_BYTES))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(subject, "changed while it was read", "try again")
    _cheap_checks(data, subject)
    import torch

    from kdci.intake.reading import read_tensors
    from kdci.store.artifacts import save_tensors

    torch.set_num_threads(1)
    with memory_for(_COPIES * len(data) + 64 * MIB):
        with locked_down():
            reading = read_tensors(data, subject, key=key)
        save_tensors(Path(TENSORS_FILE), reading.tensors)
    return {
        "format": reading.format,
        "key": reading.key,
        "others": list(reading.others),
        "converted": reading.converted,
    }


def _cheap_checks(data: bytes, subject: str) -> None:
    """Refuse what needs no torch to be refused: a bomb is met by a small process."""
    from kdci.intake.archive import check_archive, container_of

    with memory_for(len(data)):
        if container_of(data, subject) == "torch":
            check_archive(data, subject)


def _refuse(error: KdciError) -> int:
    Path(TENSORS_FILE).unlink(missing_ok=True)
    _write({"error": type(error).__name__, "what": error.what, "fix": error.fix})
    return error.exit_code


def _write(report: dict[str, Any]) -> None:
    Path(REPORT_FILE).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
