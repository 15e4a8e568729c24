"""Figures made of images: what a pool looks like, and what the models say of test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdci.reporting.evidence import Examples, PoolView
from kdci.reporting.figures import style
from kdci.reporting.results import grouped
from kdci.reporting.statistics import Discordant
from kdci.substitution.registry import title_of

NUM_COLUMNS = 10
MAX_CLASSES = 20
MAX_EXAMPLES = 20
_LABELS = 1.25
_PITCH = (style.WIDTH - _LABELS - 2 * style.MARGIN) / NUM_COLUMNS
_TILE = _PITCH - 0.08
_EMPTY_ROW = 0.42
_SEED = 0


def pick(pool: PoolView, class_index: int, count: int) -> NDArray[np.int64]:
    """Return up to ``count`` random rows of a class, the surest first; always the same ones.

    A random pick shows what the class is like; the surest images alone would flatter it.
    """
    members = np.flatnonzero(pool.top_class == class_index)
    generator = np.random.default_rng((_SEED, pool.pool_seed, class_index))
    chosen = generator.choice(members, size=min(count, len(members)), replace=False)
    return np.asarray(chosen[np.argsort(-pool.confidence[chosen], kind="stable")], dtype=np.int64)


def shown_classes(num_classes: int, limit: int) -> NDArray[np.int64]:
    """Return all classes, or ``limit`` evenly spaced ones where there are more."""
    return np.linspace(0, num_classes - 1, min(num_classes, limit)).round().astype(np.int64)


def frequent_to_rare(pool: PoolView, limit: int) -> NDArray[np.int64]:
    """Return all classes, or where there are more ``limit`` of them by their share of a pool."""
    shown = shown_classes(len(pool.proportions), limit)
    if len(shown) == len(pool.proportions):
        return shown
    return np.argsort(-pool.proportions, kind="stable")[shown]


def class_tile(
    sheet: Axes, pool: PoolView, class_index: int, x: float, y: float, size: float
) -> None:
    """Draw a random image of a class on a ``canvas``, or that there is none; see ``show_image``."""
    chosen = pick(pool, class_index, 1)
    style.show_image(sheet, pool.images[chosen[0]] if len(chosen) else None, x, y, size)
    if not len(chosen):
        middle = (x + size / 2, y + size / 2)
        sheet.text(*middle, "none", size=6.5, color=style.WRONG, ha="center", va="center")


def substitutes(pool: PoolView, class_names: Sequence[str]) -> Figure:
    """Draw random images of a pool, a row per class of the teacher, with its confidence.

    Of many classes some are shown, evenly spaced from the most frequent one to the rarest.
    """
    classes = frequent_to_rare(pool, MAX_CLASSES).tolist()
    picks = [pick(pool, class_index, NUM_COLUMNS) for class_index in classes]
    heights = [_TILE + 0.24 if len(chosen) else _EMPTY_ROW + 0.14 for chosen in picks]
    every = f"A row per class as the teacher {pool.teacher} sees it: its share of the pool, and"
    if len(classes) < len(class_names):
        every = (
            f"{len(classes)} of {len(class_names):,} classes of {pool.teacher}, frequent to rare:"
        )
    figure = style.headed(
        style.HEADING + sum(heights) + 0.1,
        f"Substitution images: {pool.title}",
        f"{every} random images, surest first, with the teacher's confidence",
    )
    sheet = style.canvas(figure)
    y = style.HEADING
    for class_index, chosen, height in zip(classes, picks, heights, strict=True):
        share = 100 * float(pool.proportions[class_index])
        middle = y + (_TILE if len(chosen) else _EMPTY_ROW) / 2
        name = style.short(class_names[class_index], cut=11)
        sheet.text(style.MARGIN, middle - 0.1, name, size=11, weight="bold", va="center")
        style.note(sheet, style.MARGIN, middle + 0.12, f"{share:.1f} %", size=8, va="center")
        if len(chosen):
            _class_row(sheet, pool, chosen, y)
        else:
            _empty_row(sheet, y)
        y += height
    return figure


def _class_row(sheet: Axes, pool: PoolView, chosen: NDArray[np.int64], y: float) -> None:
    for column in range(NUM_COLUMNS):
        x = style.MARGIN + _LABELS + column * _PITCH
        if column >= len(chosen):
            style.empty_tile(sheet, x, y, _TILE)
            continue
        index = chosen[column]
        style.show_image(sheet, pool.images[index], x, y, _TILE)
        sure = f"{100 * pool.confidence[index]:.0f} %"
        middle = x + _TILE / 2
        style.note(sheet, middle, y + _TILE + 0.03, sure, size=6.5, ha="center", va="top")


def _empty_row(sheet: Axes, y: float) -> None:
    left, width = style.MARGIN + _LABELS, (NUM_COLUMNS - 1) * _PITCH + _TILE
    style.empty_tile(sheet, left, y, width, _EMPTY_ROW)
    note = "no image of this class in the pool"
    sheet.text(left + 0.15, y + _EMPTY_ROW / 2, note, color=style.WRONG, va="center")


_TITLES_ON_TEST = {
    "gained": "Only KDCI is right",
    "lost": "Only vanilla is right",
    "other": "Others: both are right, or both wrong",
}
_TITLES_ON_HOLDOUT = {
    "gained": "Only KDCI agrees with the teacher",
    "lost": "Only vanilla agrees with the teacher",
    "other": "Others: both agree with it, or neither",
}
_TITLES_ALONE = {
    "differ": "The student and the teacher differ",
    "other": "The student and the teacher agree",
}
_LINE = 0.2
_GROUP_HEADING = 0.34
_BLOCK = _TILE + 1.15
_LONGEST, _CUT = 11, 9
"""Characters of a class name that fit below a tile, and of one that is cut."""
_SPEAKERS = {
    "label": style.MUTED,
    "vanilla": style.VANILLA,
    "kdci": style.KDCI,
    "teacher": style.INK,
}
"""What is said of an image, line by line, and the colour of its title."""


def predictions(
    examples: Examples, class_names: Sequence[str], counts: Discordant | None = None
) -> Figure:
    """Draw a case study: images with what each model takes them for; errors in red.

    What only KDCI gets right comes first, then what only vanilla does, each under a heading.

    Args:
        examples: Of the first pool's and seed's students.
        class_names: Of the teacher's classes.
        counts: How many such images there are in the whole test set.
    """
    groups = shown_groups(examples.predictions)
    num_blocks = sum(-(-len(members) // NUM_COLUMNS) for members in groups.values())
    body = len(groups) * _GROUP_HEADING + num_blocks * _BLOCK
    on_test = examples.evaluated_on == "test"
    pictures = "Test images" if on_test else "Held-out substitutes"
    figure = style.headed(
        style.HEADING + body,
        f"{pictures} as the models see them: {title_of(examples.method)}",
        _subtitle(examples, counts),
    )
    has_kdci = _has_kdci(examples.predictions)
    silent = {"label": not on_test, "kdci": not has_kdci}
    speakers = [name for name in _SPEAKERS if not silent.get(name)]
    lines = {name: line for line, name in enumerate(speakers, start=1 if on_test else 2)}
    together = _TITLES_ON_TEST if on_test else _TITLES_ON_HOLDOUT
    titles = together if has_kdci else _TITLES_ALONE
    sheet = style.canvas(figure)
    y = style.HEADING
    for group, members in groups.items():
        title = titles[group] + ("" if members else ": none")
        sheet.text(style.MARGIN, y + 0.12, title, size=10, weight="bold", va="center")
        y += _GROUP_HEADING
        for first in range(0, len(members), NUM_COLUMNS):
            _prediction_labels(sheet, y + _TILE, lines)
            for column, index in enumerate(members[first : first + NUM_COLUMNS]):
                x = style.MARGIN + _LABELS + column * _PITCH
                style.show_image(sheet, examples.images[index], x, y, _TILE)
                said = examples.predictions[index]
                _prediction_column(sheet, said, lines, class_names, x, y + _TILE)
            y += _BLOCK
    return figure


def shown_groups(said: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the shown images' indices by group, a row of each kind that students differ on.

    Images they agree on are there where the others would not fill a row, or where there is no
    KDCI student.
    """
    groups = grouped(range(len(said)), lambda index: str(said[index].get("group", "other")))
    others = groups.get("other", [])
    if not _has_kdci(said):
        differ = groups.get("differ", [])[:MAX_EXAMPLES]
        found = {"differ": differ, "other": others[: MAX_EXAMPLES - len(differ)]}
        return {name: members for name, members in found.items() if members}
    found = {name: groups.get(name, [])[:NUM_COLUMNS] for name in ("gained", "lost")}
    if others and sum(map(len, found.values())) < NUM_COLUMNS:
        found["other"] = others[:NUM_COLUMNS]
    return found


def _has_kdci(said: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["kdci"] is not None for one in said)


def _subtitle(examples: Examples, counts: Discordant | None) -> str:
    pair = f"{examples.teacher} to {examples.student}"
    red = f"red: not what the {'label' if examples.evaluated_on == 'test' else 'teacher'} says"
    if not _has_kdci(examples.predictions):
        return f"{pair}, one student; {red}"
    alone = ""
    if counts is not None:
        gained, lost = f"{counts.gained:,}", f"{counts.lost:,}"
        alone = f"; of all test images KDCI alone gets {gained} right, vanilla alone {lost}"
    return f"{pair}, students of one seed{alone}; {red}"


def _prediction_labels(sheet: Axes, y: float, lines: Mapping[str, int]) -> None:
    for name, line in lines.items():
        title, weight = "KDCI" if name == "kdci" else name, "normal" if name == "label" else "bold"
        look: dict[str, Any] = {"color": _SPEAKERS[name], "weight": weight, "va": "center"}
        sheet.text(style.MARGIN, y + line * _LINE, title, size=8.5, **look)
    right = style.MARGIN + _LABELS + NUM_COLUMNS * _PITCH - (_PITCH - _TILE)
    sheet.plot([style.MARGIN, right], [y + 1.5 * _LINE] * 2, color=style.FAINT, linewidth=0.8)


def _prediction_column(
    sheet: Axes,
    said: Mapping[str, Any],
    lines: Mapping[str, int],
    class_names: Sequence[str],
    x: float,
    y: float,
) -> None:
    truth = said["teacher" if said["label"] is None else "label"]
    # A long class name has to fit below its tile.
    size = 8.5 if max(map(len, class_names)) <= 6 else style.SMALL - 0.7
    for speaker, line in lines.items():
        index = said[speaker]
        name = "-" if index is None else style.short(class_names[index], _LONGEST, cut=_CUT)
        look: dict[str, Any] = {"color": style.MUTED if speaker == "label" else style.INK}
        if index not in (None, truth):
            look = {"color": style.WRONG, "weight": "bold"}
        middle = (x + _TILE / 2, y + line * _LINE)
        sheet.text(*middle, name, size=size, ha="center", va="center", **look)
