from __future__ import annotations

import io
import re
import time
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from kdci.config.catalog import DATASETS, DatasetSpec
from kdci.reporting.comparison import compare
from kdci.reporting.figures import images as image_figures
from kdci.reporting.figures.charts import MAX_ROWS, class_bars, dictionary
from kdci.reporting.figures.curves import learning_curves
from kdci.reporting.figures.drawing import draw_figures
from kdci.reporting.figures.gallery import by_class
from kdci.reporting.figures.overview import overview
from kdci.reporting.figures.style import WRONG, canvas, drawing, show_image, spread
from kdci.reporting.statistics import Discordant

NAMES = DATASETS["digits"].class_names


@pytest.fixture(autouse=True)
def settings():
    with drawing():
        yield


def _texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def test_every_kind_of_evidence_has_its_figure(evidence):
    figures = draw_figures(evidence)
    assert [figure.name for figure in figures] == [
        "overview.png",
        "gallery-wrn-16-1.png",
        "gallery-time-wrn-16-1.png",
        "proportions-wrn-16-1.png",
        "substitutes-wrn-16-1-fast-pool0.png",
        "dictionary-wrn-16-1-fast-pool0.png",
        "curves-wrn-16-1-wrn-10-1.png",
        "predictions-wrn-16-1-wrn-10-1-fast.png",
    ]
    for figure in figures:
        picture = Image.open(io.BytesIO(figure.png))
        assert picture.width == 1620
        assert np.asarray(picture.convert("L")).std() > 5


def test_equal_evidence_gives_equal_bytes_and_leaves_no_settings_behind(evidence):
    before = dict(mpl.rcParams)
    few = replace(evidence, pools=[], dictionaries=[], examples=[])
    assert draw_figures(few) == draw_figures(few)
    assert dict(mpl.rcParams) == before


def test_nothing_run_draws_nothing(evidence):
    nothing = replace(evidence, rows=[], pools=[], dictionaries=[], points=[], examples=[])
    assert draw_figures(nothing) == []


def test_many_classes_are_drawn_too(evidence, pool):
    spec = DatasetSpec("many", 100, 16, 1, (0.0,), (1.0,), 0, False, tuple(map(str, range(100))))
    facts = {**pool.facts, "proportions": [0.75, 0.25] + [0.0] * 98}
    facts["missing_classes"] = list(range(2, 100))
    many = replace(evidence, spec=spec, pools=[replace(pool, facts=facts)], dictionaries=[])
    assert len(draw_figures(many)) == 7


@pytest.fixture
def wide(evidence, pool):
    """200 classes with long names, 120 prototypes, and a figure of each kind."""
    random = np.random.default_rng(2)
    names = tuple(f"class {index} of many" for index in range(200))
    spec = replace(DATASETS["tiny-imagenet"], stated_names=names)
    top_class = random.integers(0, 100, 400)
    shares = np.bincount(top_class, minlength=200) / 400
    facts = {**pool.facts, "num_images": 400, "proportions": shares.tolist()}
    facts["missing_classes"] = np.flatnonzero(shares == 0).tolist()
    images = random.integers(0, 256, (400, 3, 16, 16), dtype=np.uint8)
    many = replace(
        pool, images=images, top_class=top_class, confidence=random.uniform(0, 1, 400), facts=facts
    )
    proportions = random.dirichlet(np.ones(120)).astype(np.float32)
    quality = {
        "top_class": random.integers(0, 200, 120).tolist(),
        "top_classes": [[{"class": 3, "share": 0.5}, {"class": 199, "share": 0.25}]] * 120,
        "spread": [1.0] * 120,
        "nearest_rows": [[0, 1, 2]] * 120,
        "effective_n": 80.0,
        "purity": 0.5,
        "nmi": 0.5,
        "requested": 120,
        "num_predictions": 400,
        "num_classes": 200,
    }
    view = replace(
        evidence.dictionaries[0],
        prototypes=random.normal(size=(120, 200)).astype(np.float32),
        proportions=proportions,
        facts={**evidence.dictionaries[0].facts, **quality},
    )
    lambdas = [(step, random.dirichlet(np.ones(120)).tolist()) for step in (10, 20)]
    said = [_case("gained", label=150 + n, vanilla=n, kdci=150 + n) for n in range(10)]
    examples = replace(evidence.examples[0], predictions=said, images=images[:10])
    cell = next(cell for cell in evidence.wanted if cell.variant == "kdci")
    return replace(
        evidence,
        spec=spec,
        pools=[many],
        dictionaries=[view],
        examples=[examples],
        lambdas={cell: lambdas},
    )


@pytest.mark.slow
def test_every_figure_of_200_classes_is_drawn_in_seconds_and_in_bounds(wide):
    started = time.monotonic()
    figures = draw_figures(wide)
    assert time.monotonic() - started < 60, "some 4 s on a slow core"
    kinds = {"overview", "gallery", "proportions", "substitutes", "dictionary", "prototypes"}
    kinds |= {"lambda", "curves", "predictions"}
    assert {figure.name.partition("-")[0].removesuffix(".png") for figure in figures} == kinds
    for figure in figures:
        picture = Image.open(io.BytesIO(figure.png))
        assert picture.width == 1620
        assert picture.height < 4000, figure.name


def test_names_of_200_classes_do_not_run_into_each_other(wide):
    names = wide.spec.class_names
    pool, view = wide.pools[0], wide.dictionaries[0]
    comparisons = compare(wide.rows, [("wrn-16-1", "wrn-10-1", "fast")])
    for figure in (
        overview([pool], comparisons, names),
        by_class([pool], names),
        image_figures.substitutes(pool, names),
        dictionary(view, names),
        image_figures.predictions(wide.examples[0], names),
    ):
        texts = [text for text in _texts(figure) if text.startswith("class ")]
        assert texts
        assert all(len(text) <= 12 and text.endswith("\N{HORIZONTAL ELLIPSIS}") for text in texts)


def test_of_many_classes_substitutes_shows_frequent_to_rare(wide):
    figure = image_figures.substitutes(wide.pools[0], tuple(map(str, range(200))))
    shares = [float(text[:-2]) for text in _texts(figure) if re.fullmatch(r"\d+\.\d %", text)]
    assert len(shares) == 20
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(100 * wide.pools[0].proportions.max(), abs=0.06)
    assert shares[-1] == 0.0
    assert any("20 of 200 classes" in text for text in _texts(figure))


def test_of_many_prototypes_the_most_frequent_are_drawn_against_uniform_of_all(wide):
    view = wide.dictionaries[0]
    figure = dictionary(view, wide.spec.class_names)
    bars = next(axes for axes in figure.axes if axes.get_title(loc="left") == "P(z)")
    widths = sorted((bar.get_width() for bar in bars.patches), reverse=True)
    expected = np.sort(100 * view.proportions.astype(float))[::-1][:MAX_ROWS]
    assert widths == pytest.approx(expected.tolist())
    assert bars.lines[0].get_xdata()[0] == pytest.approx(100 / 120)
    assert any("The 60 most frequent of 120 prototypes" in text for text in _texts(figure))


def test_several_budgets_have_figures_of_their_own_with_their_captions(evidence):
    rows = [replace(row, budget=0.1 if row.seed else 1.0) for row in evidence.rows]
    points = [
        replace(point, budget=0.1 if point.replicate.endswith("1") else 1.0)
        for point in evidence.points
    ]
    both = replace(evidence, rows=rows, points=points, pools=[], dictionaries=[], examples=[])
    figures = {figure.name: figure.caption for figure in draw_figures(both)}
    assert list(figures) == [
        "overview-budget1.png", "overview-budget0.1.png",
        "curves-wrn-16-1-wrn-10-1-budget1.png", "curves-wrn-16-1-wrn-10-1-budget0.1.png",
    ]  # fmt: skip
    for name, caption in figures.items():
        assert ("Budget of the students: 0.1." in caption) == ("0.1" in name)


def test_one_budget_is_in_captions_and_titles_and_not_in_names(evidence):
    tenth = replace(
        evidence,
        rows=[replace(row, budget=0.1) for row in evidence.rows],
        points=[replace(point, budget=0.1) for point in evidence.points],
    )
    named = {figure.name: figure.caption for figure in draw_figures(tenth)}
    for name in ("overview.png", "curves-wrn-16-1-wrn-10-1.png"):
        assert named[name].endswith("Budget of the students: 0.1.")
    assert "0.1." in named["predictions-wrn-16-1-wrn-10-1-fast.png"]
    assert not any("udget" in figure.caption for figure in draw_figures(evidence))
    figure = learning_curves(
        tenth.points, measure="accuracy", deploy="backbone", teacher_accuracy=None
    )
    assert "Learning curves: wrn-16-1 to wrn-10-1, budget 0.1" in _texts(figure)


def test_picks_are_members_of_the_class_surest_first_and_always_the_same(pool):
    chosen = image_figures.pick(pool, 0, 10)
    assert len(set(chosen.tolist())) == 10
    assert (pool.top_class[chosen] == 0).all()
    assert (np.diff(pool.confidence[chosen]) <= 0).all()
    assert chosen.tolist() == image_figures.pick(pool, 0, 10).tolist()
    surest = np.argsort(-pool.confidence[:30])[:10]
    assert set(chosen.tolist()) != set(surest.tolist()), "a random pick, not the best"
    assert len(image_figures.pick(pool, 5, 10)) == 0


def test_substitutes_shows_every_pick_and_says_which_classes_are_empty(pool):
    figure = image_figures.substitutes(pool, NAMES)
    assert len(figure.findobj(mpl.image.AxesImage)) == 20
    texts = _texts(figure)
    assert texts.count("no image of this class in the pool") == 8
    assert "75.0 %" in texts


def test_an_image_is_drawn_upright_with_its_own_pixels():
    image = np.zeros((1, 2, 2), dtype=np.uint8)
    image[0, 0, 1] = 200  # top right
    with drawing():
        figure = mpl.figure.Figure(figsize=(1, 1), dpi=100)
        show_image(canvas(figure), image, 0, 0, 1)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
    pixels = np.asarray(Image.open(buffer).convert("L"))
    assert pixels[25, 75] == 200
    assert pixels[75, 75] == pixels[25, 25] == pixels[75, 25] == 0


def test_predictions_marks_what_the_label_does_not_say(evidence):
    figure = image_figures.predictions(evidence.examples[0], NAMES)
    wrong = [t for t in figure.findobj(mpl.text.Text) if t.get_color() == WRONG]
    assert [text.get_text() for text in wrong] == ["2", "2", "2"]


def _case(group, label=1, **said):
    known = {"label": label, "teacher": 1, "vanilla": 1, "kdci": 1, "group": group}
    return {**known, **said}


def test_a_case_study_has_a_heading_for_what_each_student_alone_gets_right(evidence):
    said = [_case("gained", vanilla=2)] * 12 + [_case("lost", kdci=3)] * 2 + [_case("other")] * 8
    assert {name: len(shown) for name, shown in image_figures.shown_groups(said).items()} == {
        "gained": 10, "lost": 2,
    }  # fmt: skip
    images = np.zeros((len(said), 1, 16, 16), dtype=np.uint8)
    examples = replace(evidence.examples[0], predictions=said, images=images)
    figure = image_figures.predictions(examples, NAMES, Discordant(lost=2, gained=1234, p=0.0))
    texts = _texts(figure)
    assert texts.index("Only KDCI is right") < texts.index("Only vanilla is right")
    assert any("KDCI alone gets 1,234 right, vanilla alone 2;" in text for text in texts)
    assert len(figure.findobj(mpl.image.AxesImage)) == 12
    for name in ("label", "vanilla", "KDCI", "teacher"):
        assert texts.count(name) == 2
    wrong = [t for t in figure.findobj(mpl.text.Text) if t.get_color() == WRONG]
    assert [text.get_text() for text in wrong] == ["2"] * 10 + ["3"] * 2


def test_other_images_are_shown_where_students_hardly_differ():
    said = [_case("lost", kdci=3)] + [_case("other")] * 23
    assert image_figures.shown_groups(said) == {
        "gained": [], "lost": [0], "other": list(range(1, 11)),
    }  # fmt: skip


def test_without_a_kdci_student_it_is_the_teacher_that_one_differs_from(evidence):
    said = [_case("differ", vanilla=2, kdci=None)] * 4 + [_case("other", kdci=None)] * 20
    shown = image_figures.shown_groups(said)
    assert {name: len(members) for name, members in shown.items()} == {"differ": 4, "other": 16}
    images = np.zeros((len(said), 1, 16, 16), dtype=np.uint8)
    examples = replace(evidence.examples[0], predictions=said, images=images)
    texts = _texts(image_figures.predictions(examples, NAMES))
    assert "The student and the teacher differ" in texts
    assert "KDCI" not in texts


def test_held_out_substitutes_have_no_label_and_nobody_is_right(evidence):
    said = [_case("gained", label=None, vanilla=2)]
    examples = replace(evidence.examples[0], predictions=said, evaluated_on="holdout")
    texts = _texts(image_figures.predictions(examples, NAMES))
    assert "Only KDCI agrees with the teacher" in texts
    assert "label" not in texts
    assert not any("right" in text for text in texts)


def test_counts_are_of_the_students_that_are_shown(evidence):
    vanilla, kdci = np.array([0, 0, 1, 1]), np.array([1, 1, 1, 0])
    classes = {"expected": np.ones(4)}
    for seed, one in ((0, kdci), (1, vanilla)):
        classes[f"vanilla/pool0-seed{seed}/backbone"] = vanilla
        classes[f"kdci/pool0-seed{seed}/backbone"] = one
    predictions = {("wrn-16-1", "wrn-10-1", "fast"): classes}
    known = replace(evidence, predictions=predictions)
    first = next(cell for cell in known.wanted if cell.variant == "kdci")
    assert (known.discordant(first).gained, known.discordant(first).lost) == (2, 1)
    assert known.discordant(replace(first, seed=1)).gained == 0
    assert known.discordant(replace(first, seed=2)) is None
    without = {f.name: f.png for f in draw_figures(evidence)}
    drawn = {f.name: f.png for f in draw_figures(known)}
    changed = [name for name in drawn if drawn[name] != without[name]]
    assert changed == ["predictions-wrn-16-1-wrn-10-1-fast.png"]


def test_class_bars_are_the_pools_proportions(pool):
    axes = mpl.figure.Figure().add_subplot()
    class_bars(axes, pool, NAMES)
    assert [bar.get_height() for bar in axes.patches] == [75.0, 25.0] + [0.0] * 8
    assert axes.lines[0].get_ydata()[0] == 10.0
    assert pool.total_variation == pytest.approx(0.8)


def test_dictionary_rows_keep_prototype_and_proportion_together(evidence):
    view = evidence.dictionaries[0]
    figure = dictionary(view, NAMES)
    heat = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Prototypes z")
    bars = next(axes for axes in figure.axes if axes.get_title(loc="left") == "P(z)")
    drawn = np.asarray(heat.images[0].get_array())
    for row, bar in enumerate(bars.patches):
        index = int(np.abs(view.prototypes - drawn[row]).sum(axis=1).argmin())
        assert drawn[row] == pytest.approx(view.prototypes[index])
        assert bar.get_width() == pytest.approx(100 * view.proportions[index])
        assert f"z{index + 1}" in _texts(heat)
        name = heat.get_yticklabels()[row].get_text()
        assert name == NAMES[view.facts["top_class"][index]]


@pytest.mark.parametrize("space", ["features", "probabilities"])
def test_dictionaries_of_every_space_are_drawn(evidence, space):
    view = evidence.dictionaries[0]
    wide = np.zeros((3, 64), dtype=np.float32) if space == "features" else view.prototypes
    figure = dictionary(replace(view, prototypes=wide, facts={**view.facts, "space": space}), NAMES)
    assert len(figure.axes) == (1 if space == "features" else 3)


def test_thick_curves_are_means_over_students(evidence):
    points = [
        replace(point, accuracy=point.accuracy + (10 if point.replicate.endswith("1") else 0))
        for point in evidence.points
    ]
    figure = learning_curves(points, measure="accuracy", deploy="backbone", teacher_accuracy=98.5)
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() == 2.0]
    assert len(thick) == 3
    for line in thick:
        assert list(line.get_xdata()) == [10, 20]
        assert list(line.get_ydata()) == [65.0, 75.0]
    assert "teacher 98.5" in _texts(figure)
    unknown = learning_curves(points, measure="agreement", deploy="backbone", teacher_accuracy=98.5)
    assert "teacher 98.5" not in _texts(unknown)


def test_labels_are_pushed_apart_and_keep_their_order():
    placed = spread([50.0, 10.0, 10.1], gap=2.0)
    assert placed[0] == pytest.approx(50.0)
    assert placed[2] - placed[1] >= 2.0 * 0.999
    assert placed[1] + placed[2] == pytest.approx(20.1)
    assert spread([3.0], 1.0) == [3.0]
    crowded = spread([1.0, 1.0, 1.0, 1.0], gap=1.0)
    assert np.diff(sorted(crowded)).min() > 0.99
