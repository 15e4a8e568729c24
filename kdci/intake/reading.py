"""From the bytes of a checkpoint to plain tensors by name. Runs in the quarantined process."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdci.errors import IntegrityError, KdciError, UserError
from kdci.intake.archive import Container, container_of, plain_archive
from kdci.intake.limits import MAX_ENTRIES, MAX_FILE_BYTES, MAX_NAME_LENGTH
from kdci.store.artifacts import parse_tensors

KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    *("params", "teacher", "state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)
"""Where checkpoints keep their state dict, the likeliest first; averaged weights come last."""
_DEPTH = 2
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
STATE_DICT = "where it was made: torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True)
class Reading:
    """What a file held.

    Attributes:
        tensors: Plain CPU tensors by name; floating point is float32.
        format: What the file is.
        key: Dotted path of the state dict in it; "" where the whole file is one.
        others: Further keys a state dict was found under.
        converted: Tensors that were of another floating-point type, by that type.
    """

    tensors: dict[str, Tensor]
    format: Container
    key: str
    others: tuple[str, ...]
    converted: dict[str, int]


def read_tensors(data: bytes, subject: str, *, key: str | None = None) -> Reading:
    """Read a checkpoint; no code in it is run.

    Args:
        data: The file's bytes.
        subject: Its name, for messages.
        key: Dotted path of the state dict in it; None: looked for, see ``KEYS``.

    Raises:
        IntegrityError: It is damaged, or holds more than tensors and containers.
        UserError: There is no state dict in it, or a tensor in it is not a plain one.
    """
    kind = container_of(data, subject)
    loaded: Any = (
        _load_safetensors(data, subject) if kind == "safetensors" else _load(data, subject)
    )
    state, found, others = find_state_dict(loaded, subject, key=key)
    _check_names(state, subject)
    tensors = {name: _plain(name, tensor, subject) for name, tensor in state.items()}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > MAX_FILE_BYTES:
        what = f"holds tensors of {total:,} bytes, at most {MAX_FILE_BYTES:,} are read"
        raise IntegrityError(subject, what, "give a checkpoint of one classifier")
    other = Counter(
        str(t.dtype).removeprefix("torch.")
        for t in tensors.values()
        if t.is_floating_point() and t.dtype != torch.float32
    )
    made = {n: _own(t) for n, t in tensors.items()}
    return Reading(made, kind, found, others, dict(other))


def _own(tensor: Tensor) -> Tensor:
    """Return a contiguous copy, float32 if it is floating point."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _load_safetensors(data: bytes, subject: str) -> dict[str, Tensor]:
    try:
        return parse_tensors(data, Path(subject))
    except IntegrityError:
        raise IntegrityError(subject, "is not a whole safetensors file", "fetch it again") from None


def _load(data: bytes, subject: str) -> Any:
    archive = plain_archive(data, subject)
    try:
        return torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except PermissionError as error:
        raise IntegrityError(subject, f"was {error}", STATE_DICT) from None
    except Exception as error:  # damaged data may raise anything
        raise _refusal(subject, str(error)) from None


def _refusal(subject: str, message: str) -> KdciError:
    """Word torch's refusal; its own text advises to load the file without any check."""
    if "allocate memory" in message:
        raise MemoryError(message)
    named = re.search(r"(?:GLOBAL|[Ff]unction|class|module) `?([A-Za-z_]\w*\.[\w.]*\w)", message)
    if named is not None:
        what = f"holds more than tensors: its pickle names {named[1][:80]}, which is never loaded"
        return IntegrityError(subject, what, STATE_DICT)
    if re.search(r"[Uu]nsupported|opcode|operand|persistent", message):
        what = "holds more than tensors and containers, which is never loaded"
        return IntegrityError(subject, what, STATE_DICT)
    return IntegrityError(subject, "is damaged: torch can not read it", "fetch it again")


def find_state_dict(
    loaded: Any, subject: str, *, key: str | None = None
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Find the state dict in what a checkpoint holds.

    Args:
        loaded: The checkpoint's object.
        subject: The file's name, for messages.
        key: Dotted path of the state dict; None: looked for.

    Returns:
        The state dict, its dotted path, and the paths of others beside it.

    Raises:
        UserError: There is none, or none under ``key``.
    """
    found = _state_dicts(loaded, "", depth=_DEPTH)
    if key is not None:
        state: Any = loaded
        for part in key.split("."):
            state = state.get(part) if isinstance(state, Mapping) else None
        if not _is_state_dict(state):
            held = f", only under {', '.join(found)}" if any(found) else ""
            raise UserError(subject, f"holds no state dict under {key}{held}", "give another --key")
        return dict(state), key, ()
    if not found:
        raise UserError(subject, f"holds no state dict: {_described(loaded)}", "give --key")
    first, *others = found
    return found[first], first, tuple(others)


def _state_dicts(loaded: Any, path: str, *, depth: int) -> dict[str, dict[str, Tensor]]:
    if _is_state_dict(loaded):
        return {path: dict(loaded)}
    if depth == 0 or not isinstance(loaded, Mapping):
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for key in KEYS:
        if key in loaded:
            found |= _state_dicts(loaded[key], f"{path}.{key}".lstrip("."), depth=depth - 1)
    return found


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _described(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"it is a {type(loaded).__name__}"
    keys = [str(key)[:40] for key in list(loaded)[:8]]
    return f"its keys are {', '.join(keys)}" if keys else "it is empty"


def _check_names(state: Mapping[str, Tensor], subject: str) -> None:
    if len(state) > MAX_ENTRIES:
        what = f"holds {len(state):,} tensors, at most {MAX_ENTRIES:,} are read"
        raise IntegrityError(subject, what, "give a checkpoint of one classifier")
    for name in state:
        if len(name) > MAX_NAME_LENGTH or not re.fullmatch(r"[\w.\-:/]+", name):
            raise IntegrityError(subject, f"a tensor has the name {name[:60]!r}", STATE_DICT)


def _plain(name: str, tensor: Tensor, subject: str) -> Tensor:
    """Return a tensor's values, if it is nothing but values that the file holds."""
    tensor = tensor.detach()
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.dtype not in (*FLOATS, *INTEGERS):
        kind = "quantised" if tensor.is_quantized else f"{tensor.layout} {tensor.dtype}"
        kind = kind.replace("torch.", "").replace("strided ", "")
        what = f"{name} is a {kind} tensor on {tensor.device}, plain real numbers are read"
        raise UserError(subject, what, STATE_DICT)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        what = f"{name} states {tensor.numel():,} elements, more than the file holds"
        raise IntegrityError(subject, what, "fetch it again")
    return tensor
