"""Size and speed of student and teacher, for a model card and for a terminal."""

from __future__ import annotations

from kdci.exporting.release import Footprint
from kdci.reporting.text.tables import markdown

TEACHER, STUDENT = "teacher", "student"


def footprint_rows(footprint: Footprint) -> list[list[str]]:
    """Return the table: a head, then a line a network, and how they compare."""
    sizes, latencies = footprint.sizes, footprint.latencies
    head = ["", "parameters", "weights, fp32"]
    rows = [
        [name, f"{size.parameters:,}", _bytes(size.weight_bytes)] for name, size in sizes.items()
    ]
    for batch, of_batch in latencies.items():
        head.append(f"batch {batch}, ms")
        for row in rows:
            row.append(f"{of_batch[row[0]]:.3g}")
    if TEACHER in sizes:
        small, large = sizes[STUDENT], sizes[TEACHER]
        times = [f"x {of[TEACHER] / of[STUDENT]:.2f}" for of in latencies.values()]
        factors = [large.parameters / small.parameters, large.weight_bytes / small.weight_bytes]
        rows.append(["teacher / student", *(f"x {factor:.2f}" for factor in factors), *times])
    return [head, *rows]


def footprint_note(footprint: Footprint) -> str:
    """Return what the numbers were measured on."""
    threads = "1 thread" if footprint.threads == 1 else f"{footprint.threads} threads"
    note = (
        f"Median time of a forward pass in PyTorch on one machine ({footprint.processor}, "
        f"{threads}, float32), after a warm-up"
    )
    if TEACHER in footprint.sizes:
        return f"{note}, the two in turn."
    return f"{note}. The teacher is not at hand: there is nothing to compare with."


def footprint_lines(footprint: Footprint) -> list[str]:
    """Return the lines of the model card."""
    return [footprint_note(footprint), "", markdown(footprint_rows(footprint))]


def _bytes(number: int) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"
