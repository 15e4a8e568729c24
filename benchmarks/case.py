"""What is measured: the same work done several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.interleaved import Action
from benchmarks.place import Place

Build = Callable[[Place], Action]
"""Prepares a way of doing the work; what it returns does it once."""


@dataclass(frozen=True)
class Case:
    """A piece of work, and the ways to do it.

    Attributes:
        kind: `kd_step`, `inversion_step` or `dictionary_building`.
        method: Whose work it is; None: all methods'.
        teacher: Backbone.
        student: Backbone; None: there is none.
        batch_size: Images of a step, or of all the work.
        ways: By name: `project` is this project's own path, `compensated` the same with KDCI,
            `plain` the baseline, `bound` the networks alone.
        steps: Steps that an action takes; times are of one.
        repeats: Timings of each way.
        num_images: Of the pool.
        note: What a reader has to know besides.
    """

    kind: str
    method: str | None
    teacher: str
    student: str | None
    batch_size: int
    ways: Mapping[str, Build] = field(repr=False)
    steps: int = 1
    repeats: int = 7
    num_images: int = 1024
    note: str = ""

    @property
    def key(self) -> str:
        """Name in the file of results, without spaces."""
        pair = self.teacher if self.student is None else f"{self.teacher}-{self.student}"
        return "/".join(part for part in (self.kind, self.method, pair) if part)
