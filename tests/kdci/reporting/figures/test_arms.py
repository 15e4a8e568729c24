from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import pytest

from kdci.deconfounding.arms import ARMS
from kdci.reporting.comparison import compare_arms
from kdci.reporting.figures.arms import arm_color, arm_gains, axis_limits
from kdci.reporting.figures.drawing import draw_figures
from kdci.reporting.figures.style import BOTH, COMPENSATED, KDCI, VANILLA, drawing


@pytest.fixture(autouse=True)
def settings():
    with drawing():
        yield


@pytest.fixture
def rows(row):
    return [
        row(variant, seed, method=method, accuracy_backbone=base + gain + spread * gain * seed)
        for method, base, spread in (("fast", 90.0, 0.1), ("dfnd", 20.0, 1.0))
        for variant, gain in (("vanilla", 0.0), ("kdci", 1.0), ("class_balanced", 4.0))
        for seed in (0, 1, 2)
    ]


def _dots(axes):
    return [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]


def _bars(axes):
    return [line for line in axes.lines if line.get_linewidth() == 2.0]


def test_a_panel_a_method_shows_mean_interval_and_replicates_of_each_arm(rows):
    results = compare_arms(rows, "accuracy")
    figure = arm_gains(results, title="Gains")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["Fast", "DFND", "all methods"]
    for method, title in (("fast", "Fast"), ("dfnd", "DFND"), (None, "all methods")):
        axes = panels[title]
        own = [one for one in results if one.method == method]
        assert _dots(axes) == pytest.approx([one.difference.mean for one in own])
        for bar, one in zip(_bars(axes), own, strict=True):
            assert tuple(bar.get_xdata()) == pytest.approx(one.difference.interval)
        ticks = [line for line in axes.lines if line.get_marker() == "|"]
        assert list(ticks[1].get_xdata()) == pytest.approx(list(own[1].paired.values()))
    labels = [label.get_text() for label in panels["Fast"].get_yticklabels()]
    assert labels == ["KDCI", "class-balanced"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_an_interval_beyond_the_axis_ends_in_an_arrow(row):
    pairs = ((0, 0.0), (1, 10.0))  # 5 +- 63.5
    rows = [row("vanilla", seed, accuracy_backbone=50.0) for seed, _ in pairs]
    rows += [row("kdci", seed, accuracy_backbone=50.0 + gain) for seed, gain in pairs]
    results = compare_arms(rows, "accuracy")
    low, high = axis_limits((one.paired for one in results), room=0.06, widest=2.0)
    assert -25 < low < -20 and 20 < high < 25, "twice the largest difference, and some room"
    (axes,) = arm_gains(results, title="Gains").axes
    markers = {line.get_marker(): line.get_xdata()[0] for line in axes.lines}
    assert (markers["<"], markers[">"]) == (low, high)


def test_one_replicate_has_a_dot_and_no_interval_and_nothing_run_says_so(row):
    rows = [row("vanilla"), row("kdci"), row("stratified", method="dfnd")]
    figure = arm_gains(compare_arms(rows, "accuracy", over_methods=False), title="Gains")
    assert [len(_bars(axes)) for axes in figure.axes] == [0, 0]
    assert [len(_dots(axes)) for axes in figure.axes] == [1, 0]
    texts = [text.get_text().strip() for text in figure.findobj(mpl.text.Text)]
    assert texts.count("not run") == 3


def test_colours_tell_kinds_of_arms_apart():
    colors = {arm: arm_color(arm) for arm in ARMS}
    assert colors["kdci"] == KDCI
    assert colors["kdci_without_proportions"] == colors["kdci_other"] == COMPENSATED
    assert colors["class_balanced"] == colors["logit_adjusted"] == VANILLA
    assert colors["kdci_stratified"] == BOTH


def test_arms_and_shifts_have_figures_of_their_own_and_methods_keep_theirs(evidence, rows):
    few = replace(evidence, pools=[], dictionaries=[], examples=[])
    plain = {figure.name: figure.png for figure in draw_figures(few)}
    shifted = [replace(row, method="blur") for row in rows if row.method == "fast"]
    points = [replace(point, method="blur") for point in few.points]
    more = replace(few, rows=[*few.rows, *shifted], points=[*few.points, *points], shifts=("blur",))
    figures = {figure.name: figure for figure in draw_figures(more)}
    assert set(figures) == {*plain, "shifts-wrn-16-1-wrn-10-1.png"}
    assert all(figures[name].png == png for name, png in plain.items())
    assert figures["shifts-wrn-16-1-wrn-10-1.png"].section == "Known shifts"
    armed = draw_figures(replace(few, rows=rows))
    assert "arms-wrn-16-1-wrn-10-1.png" in {figure.name for figure in armed}
