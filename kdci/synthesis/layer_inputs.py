"""What some layers of a network are given, read while a context is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Reading = TypeVar("Reading")


class LayerInputs(Generic[Reading]):
    """Reads the inputs of layers while used as a context, one reading a layer.

    Outside of ``with`` nothing is hooked, so ordinary forward passes cost nothing; the same
    object can be entered again.

    Args:
        layers: Modules that take feature maps (B, C, H, W), each once per forward pass.
        read: Returns what is kept of an input. Under autocast that may be bfloat16, too coarse
            to sum over a batch or an image.
    """

    def __init__(self, layers: Sequence[nn.Module], read: Callable[[Tensor], Reading]) -> None:
        self._layers = list(layers)
        self._read = read
        self._handles: list[RemovableHandle] = []
        self._readings: dict[int, Reading] = {}

    def __enter__(self) -> Self:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._hook(index)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # The readings hold the graph of the last forward pass alive.
        self._readings.clear()

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._readings[index] = self._read(inputs[0])

        return keep

    @property
    def readings(self) -> list[Reading]:
        """Readings of the last forward pass, in the order of the layers."""
        return [self._readings[index] for index in range(len(self._layers))]
