"""A foreign checkpoint is read by a process of its own; what comes back is checked again.

The process has no environment but what Python needs, limits on time, memory and files, and
denies itself pickle's loader, processes, network and changes of files while it reads
(``kdci.intake.child``). It hands over one safetensors file and a few words.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdci
from kdci.errors import IntegrityError, KdciError, StorageError, UserError
from kdci.intake.limits import MAX_FILE_BYTES, MAX_REPORT_BYTES, WALL_SECONDS

if TYPE_CHECKING:
    from torch import Tensor

_TENSORS_FILE, _REPORT_FILE, _STDERR_FILE = "tensors.safetensors", "report.json", "stderr.txt"
_ERRORS: dict[str, type[KdciError]] = {
    error.__name__: error for error in (UserError, IntegrityError, StorageError)
}
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")


@dataclass(frozen=True)
class Checkpoint:
    """What a foreign file held: tensors, all finite, and where they were found.

    Attributes:
        tensors: CPU tensors by name; floating point is float32.
        name: The file's name.
        sha256: Of the file.
        num_bytes: Of the file.
        format: `torch` or `safetensors`.
        key: Dotted path of the state dict in the file; "" where the file is one.
        others: Keys of further state dicts in it.
        converted: Tensors that were of another floating-point type, by that type.
    """

    tensors: dict[str, Tensor]
    name: str
    sha256: str
    num_bytes: int
    format: str
    key: str
    others: tuple[str, ...]
    converted: dict[str, int]


def read_checkpoint(path: Path, *, key: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Read a foreign checkpoint in quarantine.

    Args:
        path: A regular file: torch's zip archive or safetensors.
        key: Dotted path of the state dict in it; None: looked for.
        sha256: What the file's hash has to be, if known.

    Raises:
        UserError: It is no regular file, or there is no state dict of plain tensors in it.
        IntegrityError: It is damaged, too large, not what ``sha256`` says, holds more than
            tensors, or a weight is not finite.
        StorageError: It can not be read, or there is no room for the tensors.
    """
    with _opened(path) as file, tempfile.TemporaryDirectory(prefix="kdci-intake-") as folder:
        size = os.fstat(file.fileno()).st_size
        digest = file_digest(file, "sha256").hexdigest()
        if sha256 is not None and digest != sha256.strip().lower():
            what = f"has SHA-256 {digest}, not the one given"
            raise IntegrityError(str(path), what, "fetch it again, or ask where it comes from")
        file.seek(0)
        outbox = Path(folder)
        code = _run_child(file, outbox, path, key=key, sha256=digest)
        report = _report(outbox, path, code)
        return Checkpoint(
            tensors=_tensors(outbox / _TENSORS_FILE, path),
            name=path.name,
            sha256=digest,
            num_bytes=size,
            format=str(report["format"]),
            key=str(report["key"]),
            others=tuple(str(other) for other in report["others"]),
            converted={str(name): int(count) for name, count in report["converted"].items()},
        )


@contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    """Open a regular file; a link, device or pipe in its place is refused unopened."""
    try:
        if path.is_symlink():
            what = f"is a symbolic link to {path.readlink()}"
            raise UserError(str(path), what, "give the file it leads to")
        # Opening a pipe would wait for its writer; what was opened is what is looked at.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        kind = UserError if missing else StorageError
        fix = "give the checkpoint's path" if missing else "make it readable"
        raise kind(str(path), error.strerror or "can not be opened", fix) from None
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(str(path), "is no regular file", "give a checkpoint file")
        if facts.st_size > MAX_FILE_BYTES:
            what = f"has {facts.st_size:,} bytes, at most {MAX_FILE_BYTES:,} are read"
            raise IntegrityError(str(path), what, "give a checkpoint of one classifier")
        with os.fdopen(handle, "rb", buffering=0, closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def _run_child(file: FileIO, outbox: Path, path: Path, *, key: str | None, sha256: str) -> int:
    command = [sys.executable, "-m", "kdci.intake.child", f"--subject={path.name}"]
    command += ["--sha256", sha256, *([f"--key={key}"] if key is not None else [])]
    with (outbox / _STDERR_FILE).open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=outbox,
            env=_environment(outbox),
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            what = f"was not read within {WALL_SECONDS:.0f} seconds"
            raise IntegrityError(str(path), what, "save the state dict alone") from None
        finally:
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(outbox: Path) -> dict[str, str]:
    """Return what Python and torch need to start; no token of the user's is among it."""
    return {
        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "PYTHONPATH": str(Path(kdci.__file__).resolve().parents[1]),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(outbox),
        "TMPDIR": str(outbox),
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def _report(outbox: Path, path: Path, code: int) -> dict[str, Any]:
    """Return the process's report, or raise what it refused the file for."""
    try:
        report = json.loads(_bytes_of(outbox / _REPORT_FILE, MAX_REPORT_BYTES))
        if "error" not in report and code == 0:
            return {name: report[name] for name in ("format", "key", "others", "converted")}
        error = _ERRORS[report["error"]]
        what, fix = _line(report["what"]), _line(report["fix"])
    except (OSError, ValueError, KeyError, TypeError):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        what = f"the process that read it ended by {how}{_last_words(outbox)}"
        raise IntegrityError(str(path), what, "fetch it again, or save the state dict alone") from (
            None
        )
    raise error(str(path), what, fix)


def _last_words(outbox: Path) -> str:
    try:
        lines = (outbox / _STDERR_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return f": {_line(lines[-1])}" if lines else ""


def _line(text: object) -> str:
    """Return foreign text as one line that is fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:500])


def _bytes_of(file: Path, most: int) -> bytes:
    facts = file.lstat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        raise ValueError(f"{file.name} is not what was asked for")
    return file.read_bytes()


def _tensors(file: Path, path: Path) -> dict[str, Tensor]:
    """Read what the process wrote, trusting nothing: shapes, types and values."""
    import torch

    from kdci.store.artifacts import parse_tensors

    try:
        tensors = parse_tensors(_bytes_of(file, MAX_FILE_BYTES), path)
    except (OSError, ValueError):
        raise IntegrityError(str(path), "left no tensors", "fetch it again") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            what = f"{name} holds NaN or infinity in {bad:,} of {tensor.numel():,} places"
            raise IntegrityError(str(path), what, "fetch it again, or give an earlier checkpoint")
    return tensors
