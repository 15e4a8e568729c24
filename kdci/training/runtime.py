"""Device, threads, precision and random streams of one process."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kdci.errors import NumericError, UserError
from kdci.training.arithmetic import MEMORY_FORMATS, PRECISIONS, ComputeFormat, Precision
from kdci.training.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Runtime:
    """What the numbers of this process depend on, besides params and code.

    Attributes:
        device: Torch device.
        threads: Threads of torch's kernels.
        precision: `fp32` or `bf16` (autocast of the networks; losses and statistics stay fp32).
            With several formats it is that of the first.
        formats: What a network may compute in, the likeliest first, where that is to be
            measured; see ``kdci.training.arithmetic``. Empty: channels-last.
    """

    device: torch.device
    threads: int
    precision: Precision
    formats: tuple[ComputeFormat, ...] = ()

    @property
    def format(self) -> ComputeFormat:
        """What a network that nobody measures computes in: the likeliest of ``formats``."""
        return self.formats[0] if self.formats else ComputeFormat(self.precision, "channels_last")

    def card(self) -> dict[str, Any]:
        """Return the entry for an artifact's card; wall-clock facts are kept out."""
        facts: dict[str, Any] = {
            "device": str(self.device),
            "threads": self.threads,
            "precision": self.precision,
        }
        if self.device.type == "cuda":
            facts["device_name"] = torch.cuda.get_device_name(self.device)
        facts["machine"] = platform.machine()
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        return facts


def start(
    *,
    device: str,
    threads: int | str,
    precision: str,
    memory_format: str = "channels_last",
    keep_memory: bool = True,
) -> Runtime:
    """Set up torch for this process.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: A number, or `auto` for the cores this process may use.
        precision: `auto`, `fp32` or `bf16`.
        memory_format: `auto`, `contiguous` or `channels_last`.
        keep_memory: On the CPU, keep what a step frees for the next; see
        ``kdci.training.host_memory``.

    Raises:
        UserError: The device is not there.
    """
    chosen = _device(device)
    num_threads = available_cores() if isinstance(threads, str) else threads
    torch.set_num_threads(num_threads)
    if chosen.type == "cpu" and keep_memory:
        keep_freed_memory()
    if chosen.type == "cuda":
        # On the CPU the operations used here repeat as they are, and this call would import
        # the compiler.
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    # Emulated bf16 is not even tried.
    precisions = PRECISIONS[computes_bf16(chosen)] if precision == "auto" else (precision,)
    memory_formats = MEMORY_FORMATS if memory_format == "auto" else (memory_format,)
    formats = tuple(
        ComputeFormat(cast("Any", one), cast("Any", layout))
        for layout in memory_formats
        for one in precisions
    )
    return Runtime(chosen, num_threads, formats[0].precision, formats)


def available_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name, and whether it computes bf16 natively."""
    name = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = facts.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    native = ", native bf16" if computes_bf16(torch.device("cpu")) else ""
    return f"{name}{native}"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices"
        raise UserError("runtime.device", f"{name} is not here, found {found}", "use auto or cpu")
    return device


def computes_bf16(device: torch.device) -> bool:
    """Tell whether ``device`` has bf16 arithmetic; emulated, it is 10 to 20 times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # newer than the oldest torch
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def versions() -> dict[str, str]:
    """Return the versions of what the numbers are computed with."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "kdci")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def derive_seed(*parts: int | str) -> int:
    """Return a seed of its own for each purpose, so that no stream shifts another.

    Args:
        parts: What the stream is for, such as ``(seed, "distill", "student")``.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by ``derive_seed(*parts)``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def require_finite(model: nn.Module, subject: str) -> None:
    """Check every floating-point tensor of a model.

    Raises:
        NumericError: One of them holds NaN or infinity.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericError(subject, f"{name} is not finite", "lower the learning rate")
