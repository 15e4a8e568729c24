"""Progress of a loop: a bar on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from kdci.store.metrics import MetricFile

SHOWN = ("loss", "train_accuracy", "agreement", "inversion_loss", "scored", "bank")


class Progress:
    """Shows how far a loop is.

    Args:
        total: Steps in all; 0: not known.
        label: What is being done.
        metrics: Where the loop logs; each new line there is a line of output.
    """

    def __init__(self, total: int, *, label: str, metrics: MetricFile) -> None:
        self.total = total
        self.label = label
        self.metrics = metrics
        self._num_lines = len(metrics)
        self._began = time.monotonic()
        self._bar = (
            tqdm(total=total or None, desc=label, leave=False) if sys.stderr.isatty() else None
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        logged = len(self.metrics) > self._num_lines
        self._num_lines = len(self.metrics)
        if self._bar is not None:
            if logged:
                self._bar.set_postfix_str(self._values())
            self._bar.update(step - self._bar.n)
        elif logged:
            seconds = time.monotonic() - self._began
            place = f"{step}/{self.total}" if self.total else str(step)
            sys.stderr.write(f"{self.label} {place}  {self._values()}  {seconds:.0f} s\n")
            sys.stderr.flush()

    def _values(self) -> str:
        newest = self.metrics.newest
        return "  ".join(f"{name} {newest[name]:.4g}" for name in SHOWN if name in newest)
