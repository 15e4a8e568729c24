"""Substitution images of all methods side by side: by class, and over time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdci.reporting.evidence import PoolView
from kdci.reporting.figures import style
from kdci.reporting.figures.images import class_tile, shown_classes
from kdci.substitution.registry import title_of

MAX_COLUMNS = 10
ROWS_OVER_TIME = 2
_LABELS = 1.1
_PITCH = (style.WIDTH - _LABELS - 2 * style.MARGIN) / MAX_COLUMNS
_TILE = _PITCH - 0.06
_SEED = 0
_LONG_TITLE = 12


def by_class(pools: Sequence[PoolView], class_names: Sequence[str]) -> Figure:
    """Draw a random image of each class from each pool: a row a pool, a column a class.

    Args:
        pools: Of one teacher, one a method.
        class_names: Of the teacher's classes; evenly spaced ones where there are many.
    """
    classes = shown_classes(len(class_names), MAX_COLUMNS).tolist()
    few = len(classes) == len(class_names)
    which = "each class" if few else f"{len(classes)} of {len(class_names):,} classes"
    figure = style.headed(
        style.HEADING + 0.25 + len(pools) * _PITCH + 0.1,
        "What each method puts in the place of the data",
        f"A random image of {which} out of each pool, as the teacher {pools[0].teacher} sees it",
    )
    sheet = style.canvas(figure)
    for column, index in enumerate(classes):
        middle = style.MARGIN + _LABELS + column * _PITCH + _TILE / 2
        name = style.short(class_names[index], cut=10)
        style.note(sheet, middle, style.HEADING + 0.12, name, ha="center")
    for row, pool in enumerate(pools):
        y = style.HEADING + 0.25 + row * _PITCH
        _row_label(sheet, pool, y + _TILE / 2)
        for column, index in enumerate(classes):
            class_tile(sheet, pool, index, style.MARGIN + _LABELS + column * _PITCH, y, _TILE)
    return figure


def over_time(pools: Sequence[PoolView]) -> Figure:
    """Draw what was synthesised, from the first images of each pool to the last.

    Args:
        pools: Of one teacher; each with images that were made and not chosen.
    """
    block = ROWS_OVER_TIME * _PITCH + 0.12
    figure = style.headed(
        style.HEADING + 0.25 + len(pools) * block + 0.1,
        "What was synthesised over time",
        "Random images out of ten parts of each pool, from the first made to the last, "
        "before any student",
    )
    sheet = style.canvas(figure)
    for x, text, side in (
        (style.MARGIN + _LABELS, "first", "left"),
        (style.MARGIN + _LABELS + (MAX_COLUMNS - 1) * _PITCH + _TILE, "last", "right"),
    ):
        style.note(sheet, x, style.HEADING + 0.12, text, ha=side)
    for number, pool in enumerate(pools):
        top = style.HEADING + 0.25 + number * block
        _row_label(sheet, pool, top + ROWS_OVER_TIME * _PITCH / 2)
        start = len(pool.images) - pool.num_made
        generator = np.random.default_rng((_SEED, pool.pool_seed))
        for column, part in enumerate(np.array_split(np.arange(pool.num_made), MAX_COLUMNS)):
            count = min(ROWS_OVER_TIME, len(part))
            chosen = generator.choice(part, size=count, replace=False) if count else part
            for row, index in enumerate(sorted(chosen)):
                x = style.MARGIN + _LABELS + column * _PITCH
                style.show_image(sheet, pool.images[start + index], x, top + row * _PITCH, _TILE)
    return figure


def _row_label(sheet: Axes, pool: PoolView, middle: float) -> None:
    title = title_of(pool.method)
    size = 10 if len(title) <= _LONG_TITLE else 8  # a known shift may have a long name
    words = "\n".join(textwrap.wrap(title, _LONG_TITLE))
    sheet.text(style.MARGIN, middle, words, size=size, weight="bold", va="center")
