"""How figures look: one palette, one typeface, one way to lay out images.

Figures are made without pyplot, so drawing leaves no state behind, and with the typeface that
matplotlib brings along, so they look the same on every machine.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

INK = "#1f2933"
MUTED = "#6b7785"
FAINT = "#e3e7eb"
PANEL = "#f5f7f9"
VANILLA = "#6d8cae"
KDCI = "#e2711d"
COMPENSATED = "#f0ab6f"
BOTH = "#7d5a94"
POOL = "#a9b4bf"
WRONG = "#c0341d"
DIVERGING = LinearSegmentedColormap.from_list(
    "kdci_diverging", ["#3d5f85", "#9db4cc", "#ffffff", "#f3b98a", "#c95a0c"]
)
SEQUENTIAL = LinearSegmentedColormap.from_list("kdci_sequential", ["#ffffff", "#f3b98a", "#c95a0c"])

WIDTH = 9.0
"""Inches; at 100 px an inch this is the width of a README's column."""
HEADING = 0.8
PANEL_TITLE = 0.3
MARGIN = 0.25
RIGHT = WIDTH - MARGIN
DPI = 180
SMALL = 7.5
MINUS = str.maketrans("-", "\N{MINUS SIGN}")

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.solid_capstyle": "round",
}


def drawing() -> AbstractContextManager[None]:
    """Hold the settings of all figures while a block draws and saves."""
    return mpl.rc_context(_SETTINGS)


def png(figure: Figure) -> bytes:
    """Return ``figure`` as a PNG without time or version stamps: equal figures, equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def headed(height: float, title: str, subtitle: str) -> Figure:
    """Return a figure with a title and a muted line below it in the top ``HEADING`` inches."""
    figure = Figure(figsize=(WIDTH, height))
    x = MARGIN / WIDTH
    figure.text(x, 1 - 0.18 / height, title, size=12, weight="bold", va="top")
    figure.text(x, 1 - 0.45 / height, subtitle, size=8.5, color=MUTED, va="top")
    return figure


def panels(
    count: int,
    columns: int,
    body: float,
    below: float,
    left: float,
    gap: float,
    right: float = MARGIN,
    *,
    title: str,
    subtitle: str,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with rows of equal axes, each with room for a title above it.

    Args:
        count: How many axes.
        columns: The most that stand side by side.
        body: Height of the axes in inches, as all that follow.
        below: Room below them.
        left: Room at the left of a row.
        gap: Room between columns.
        right: Room at the right of a row.
        title: Of the figure.
        subtitle: Of the figure.
    """
    columns = min(columns, count)
    pitch = PANEL_TITLE + body + below
    figure = headed(HEADING + -(-count // columns) * pitch, title, subtitle)
    width = (WIDTH - left - right - gap * (columns - 1)) / columns
    axes = []
    for index in range(count):
        row, column = divmod(index, columns)
        top = HEADING + PANEL_TITLE + row * pitch
        axes.append(place(figure, left + column * (width + gap), top, width, body))
    return figure, axes


def blank(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes, measured in inches from the figure's top left corner."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return figure.add_axes(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    )


def canvas(figure: Figure) -> Axes:
    """Add axes over the whole figure whose unit is an inch, y pointing down."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.patch.set_visible(False)
    blank(axes)
    return axes


def show_image(
    sheet: Axes, image_CHW: NDArray[np.uint8] | None, x: float, y: float, size: float
) -> None:
    """Draw a uint8 image (C, H, W), pixels sharp, on a ``canvas``.

    Args:
        sheet: Made by ``canvas``.
        image_CHW: One channel is shown in grey, three as colours; None: its place stays empty.
        x: Left edge in inches.
        y: Top edge in inches.
        size: Width and height in inches.
    """
    if image_CHW is None:
        empty_tile(sheet, x, y, size)
        return
    pixels = image_CHW.transpose(1, 2, 0)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    extent = (x, x + size, y + size, y)
    sheet.imshow(pixels, extent=extent, interpolation="nearest", aspect="auto")


def note(axes: Axes, x: float, y: float, text: str, **changes: Any) -> None:
    """Write text, small and muted but for the ``changes``."""
    axes.text(x, y, text, **{"size": SMALL, "color": MUTED, **changes})


def empty_tile(sheet: Axes, x: float, y: float, width: float, height: float | None = None) -> None:
    """Draw the place of images that there are none of, square if no height is given."""
    sheet.add_patch(
        Rectangle((x, y), width, height or width, facecolor=PANEL, edgecolor=FAINT, linewidth=0.8)
    )


def short(name: str, longest: int = 12, *, cut: int | None = None) -> str:
    """Return a class name, cut where it has more than ``longest`` characters.

    Args:
        name: Of a class.
        longest: Characters that fit.
        cut: Characters that are left of a name that does not, with the sign of its being cut;
            ``longest`` if not given. Fewer of them keep two cut names apart.
    """
    if len(name) <= longest:
        return name
    return name[: (cut or longest) - 1] + "\N{HORIZONTAL ELLIPSIS}"


def gain_axis(axes: Axes) -> None:
    """Let x be a difference in points: a line at 0, labels with their sign, as "+5", "0", "−5"."""
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.xaxis.set_major_formatter(
        lambda value, _: f"{value:+g}".translate(MINUS) if value else "0"
    )


def value_axis(axes: Axes) -> None:
    """Let y be values to read off: faint lines across in the place of a frame; few ticks."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))


def beside(axes: Axes, text: str, x: float, y: float, offset: float, **style: Any) -> None:
    """Write ``offset`` points beside a place that is a share ``x`` of the width, at the value y."""
    where: dict[str, Any] = dict(xycoords=("axes fraction", "data"), textcoords="offset points")
    axes.annotate(text, (x, y), (offset, 0), va="center", **where, **style)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until neighbours are at least ``gap`` from each other.

    Returns them in the order given, as close to where they were as pushing pairs apart gets.
    """
    order = np.argsort(positions, kind="stable")
    placed = np.asarray(positions, dtype=float)[order]
    for _ in range(200):
        overlap = gap - np.diff(placed)
        if len(placed) < 2 or overlap.max() <= gap * 1e-3:
            break
        for index in np.flatnonzero(overlap > 0):
            push = (gap - (placed[index + 1] - placed[index])) / 2
            placed[index] -= push
            placed[index + 1] += push
    result = np.empty_like(placed)
    result[order] = placed
    return [float(value) for value in result]
