from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from kdci.config.catalog import DATASETS
from kdci.reporting.figures.drawing import draw_figures
from kdci.reporting.figures.inspector import MAX_PROTOTYPES, lambda_over_training, prototypes
from kdci.reporting.figures.style import POOL, drawing
from kdci.reporting.gather import _lambdas
from kdci.reporting.text.markdown import report_text
from kdci.store.layout import Cell

NAMES = DATASETS["digits"].class_names


@pytest.fixture(autouse=True)
def settings():
    with drawing():
        yield


@pytest.fixture
def view(evidence):
    """The three prototypes of the evidence (P(z) 0.5, 0.2, 0.3) with what their card says."""
    view = evidence.dictionaries[0]
    quality = {
        "sizes": [20, 8, 12],
        "spread": [1.25, 2.5, 0.75],
        "mean_spread": 1.35,
        "effective_n": 2.7998,
        "purity": 0.875,
        "nmi": 0.6283,
        "top_classes": [
            [{"class": 1, "share": 0.9}, {"class": 7, "share": 0.1}],
            [{"class": 0, "share": 1.0}],
            [{"class": 0, "share": 0.996}, {"class": 5, "share": 0.004}],
        ],
        "nearest_rows": [[30, 31, 32, 33, 34, 35, 36, 37], [4, 2], [0]],
    }
    return replace(view, facts={**view.facts, **quality})


CELL = Cell("wrn-16-1", "wrn-10-1", "fast", "kdci", 0, 1)
POINTS = [(10, [0.2, 0.3, 0.5]), (20, [0.1, 0.3, 0.6])]


def _texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def _by_place(figure):
    """Return the images with their rows: top to bottom, left to right."""
    found = figure.findobj(mpl.image.AxesImage)
    return sorted(found, key=lambda image: (image.get_extent()[3], image.get_extent()[0]))


def _inside(figure):
    """Return whether all text lies on the figure."""
    figure.canvas.draw()
    whole = figure.bbox
    return all(
        whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        for text in figure.findobj(mpl.text.Text)
        if text.get_text() and text.get_visible()
        for box in [text.get_window_extent()]
    )


class TestPrototypes:
    def test_a_row_each_largest_first_with_what_the_card_says(self, view, pool):
        figure = prototypes(view, pool, NAMES)
        texts = _texts(figure)
        rows = [text for text in texts if text[0] == "z" and text[1:].isdigit()]
        assert rows == ["z1", "z3", "z2"]
        order = [texts.index(text) for text in ("50.0 %", "30.0 %", "20.0 %")]
        assert order == sorted(order)
        assert {"1  90 %", "7  10 %", "0  100 %", "0  99.6 %", "5  0.4 %"} <= set(texts)
        spreads = [text for text in texts if text in ("1.25", "2.50", "0.75")]
        assert spreads == ["1.25", "0.75", "2.50"]
        (summary,) = [text for text in texts if "effectively" in text]
        assert summary == (
            "3 of 4 prototypes, effectively 2.8, of 40 images; classes of wrn-16-1: purity 87.5 %, "
            "NMI 0.63"
        )
        assert _inside(figure)

    def test_images_are_the_rows_of_the_card(self, view, pool):
        shown = _by_place(prototypes(view, pool, NAMES))
        expected = [30, 31, 32, 33, 34, 35, 36, 37, 0, 4, 2]
        assert len(shown) == len(expected)
        for image, row in zip(shown, expected, strict=True):
            pixels = np.asarray(image.get_array())
            assert (pixels == pool.images[row].transpose(1, 2, 0)).all()

    def test_no_more_than_twenty(self, view, pool):
        count = 33
        shares = np.arange(1, count + 1, dtype=np.float32)
        facts = {
            **view.facts,
            "spread": [1.0] * count,
            "top_classes": [view.facts["top_classes"][0]] * count,
            "nearest_rows": [[index] for index in range(count)],
        }
        many = replace(
            view,
            prototypes=np.zeros((count, 10), dtype=np.float32),
            proportions=shares / shares.sum(),
            facts=facts,
        )
        figure = prototypes(many, pool, NAMES)
        rows = [text for text in _texts(figure) if text[0] == "z" and text[1:].isdigit()]
        assert rows == [f"z{index}" for index in range(33, 33 - MAX_PROTOTYPES, -1)]
        assert "Prototypes of Fast, pool 0: the 20 most frequent of 33" in _texts(figure)
        assert _inside(figure)

    def test_of_another_model_there_are_neither_images_nor_names(self, view, pool):
        adopted = replace(view, facts={**view.facts, "adopted": True, "num_classes": 10})
        figure = prototypes(adopted, pool, NAMES)
        assert not figure.findobj(mpl.image.AxesImage)
        texts = _texts(figure)
        assert "#1  90 %" in texts and "images nearest to z" not in texts
        assert any("another pre-trained model" in text for text in texts)

    def test_without_the_pool_there_are_no_images(self, view):
        figure = prototypes(view, None, NAMES)
        assert not figure.findobj(mpl.image.AxesImage)
        assert "1  90 %" in _texts(figure)

    def test_another_pool_than_its_own_shows_no_images(self, view, pool):
        newer = replace(pool, images=pool.images[:20])
        assert not prototypes(view, newer, NAMES).findobj(mpl.image.AxesImage)

    def test_a_long_class_name_is_cut(self, view, pool):
        names = ["American lobster, Northern lobster"] * 10
        figure = prototypes(view, pool, names)
        assert "American lo\N{HORIZONTAL ELLIPSIS}  90 %" in _texts(figure)
        assert _inside(figure)


class TestLambdaOverTraining:
    def test_a_line_each_and_the_proportions_beside_it(self):
        proportions = np.array([0.5, 0.2, 0.3], dtype=np.float32)
        figure = lambda_over_training(CELL, POINTS, proportions)
        axes, edge = figure.axes
        lines = [line for line in axes.lines if line.get_linestyle() == "-"]
        values = sorted(tuple(np.round(line.get_ydata(), 6)) for line in lines)
        assert values == [(20, 10), (30, 30), (50, 60)]
        assert all(list(line.get_xdata()) == [10, 20] for line in lines)
        color_of = {tuple(np.round(line.get_ydata(), 6))[-1]: line.get_color() for line in lines}
        marks = [line for line in edge.lines if line.get_marker() == "D"]
        placed = {mark.get_color(): round(float(mark.get_ydata()[0]), 4) for mark in marks}
        assert placed == {color_of[10]: 50, color_of[30]: 20, color_of[60]: 30}
        assert edge.get_ylim() == axes.get_ylim()
        assert {"P(z)", "z1  50.0 %", "z2  20.0 %", "z3  30.0 %"} <= set(_texts(figure))
        (even,) = [line for line in axes.lines if line.get_linestyle() != "-"]
        assert even.get_ydata()[0] == pytest.approx(100 / 3)
        assert _inside(figure)

    def test_all_but_the_ten_largest_are_grey(self):
        random = np.random.default_rng(0)
        shares = random.dirichlet(np.ones(25)).astype(np.float32)
        points = [(step, random.dirichlet(np.ones(25)).tolist()) for step in (1, 2, 3)]
        figure = lambda_over_training(CELL, points, shares)
        solid = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
        assert len(solid) == 25
        assert sum(line.get_color() == POOL for line in solid) == 15
        named = {text.split()[0] for text in _texts(figure) if text.endswith(" %")}
        assert named == {f"z{index + 1}" for index in np.argsort(-shares)[:10]}
        assert "grey: 15 others" in _texts(figure)
        assert _inside(figure)

    def test_without_proportions_lines_are_named_by_their_end(self):
        texts = _texts(lambda_over_training(CELL, POINTS))
        assert "P(z)" not in texts and "z3  60.0 %" in texts

    def test_a_dictionary_built_anew_may_have_lost_prototypes(self):
        figure = lambda_over_training(CELL, [(5, [0.25] * 4), *POINTS])
        for line in figure.axes[0].lines:
            if line.get_linestyle() == "-":
                assert list(line.get_xdata()) == [10, 20]

    def test_proportions_of_another_dictionary_are_not_drawn(self):
        figure = lambda_over_training(CELL, POINTS, np.array([0.5, 0.5], dtype=np.float32))
        assert "P(z)" not in _texts(figure)

    def test_one_step_is_drawn_as_dots(self):
        figure = lambda_over_training(CELL, POINTS[:1])
        markers = [line.get_marker() for line in figure.axes[0].lines]
        assert markers.count("o") == 3


class TestGathering:
    def test_students_with_a_lambda_in_the_order_of_the_grid(self):
        variants = ("vanilla", "kdci", "kdci_random_lambda", "kdci_stratified")
        cells = [
            Cell("t", "s", "fast", variant, 0, seed) for variant in variants for seed in (0, 1)
        ]
        gone = Cell("t", "s", "fast", "kdci", 0, 9)
        values = {"vanilla": {}, "kdci_random_lambda": {"lambda": None}}
        curves = {
            cell: [
                {"step": step, **values.get(cell.variant, {"lambda": [0.1 * cell.seed, 0.5]})}
                for step in (5, 10)
            ]
            for cell in [gone, *reversed(cells)]
        }
        found = _lambdas(cells, curves)
        assert list(found) == [
            cell for cell in cells if cell.variant in ("kdci", "kdci_stratified")
        ]
        assert found[cells[3]] == [(5, [0.1, 0.5]), (10, [0.1, 0.5])]


class TestReport:
    @pytest.fixture
    def whole(self, evidence, view):
        kdci = [cell for cell in evidence.wanted if cell.variant == "kdci"]
        card = next(iter(evidence.students.values()))
        return replace(
            evidence,
            dictionaries=[view],
            students={**evidence.students, **dict.fromkeys(kdci, card)},
            lambdas={
                replace(CELL, seed=0): POINTS,
                CELL: POINTS,
                replace(CELL, variant="kdci_stratified"): POINTS,
                replace(CELL, method="dfnd"): POINTS,
            },
        )

    def test_figures_of_every_dictionary_and_of_the_first_student_of_a_method(self, whole):
        figures = [f for f in draw_figures(whole) if f.section == "Confounder dictionary"]
        assert [figure.name for figure in figures] == [
            "dictionary-wrn-16-1-fast-pool0.png",
            "prototypes-wrn-16-1-fast-pool0.png",
            "lambda-wrn-16-1-wrn-10-1-fast.png",
            "lambda-wrn-16-1-wrn-10-1-dfnd.png",
        ]
        assert "pool0-seed0" in figures[2].caption
        for figure in figures:
            picture = Image.open(io.BytesIO(figure.png))
            assert picture.width == 1620
            assert np.asarray(picture.convert("L")).std() > 5

    def test_a_dictionary_of_an_earlier_version_has_no_prototypes_drawn(self, evidence):
        names = [figure.name for figure in draw_figures(evidence)]
        assert not any(name.startswith(("prototypes-", "lambda-")) for name in names)
        assert "| - | - | - | - |" in report_text(evidence, [])

    def test_table_says_how_good_the_dictionaries_are(self, whole):
        (line,) = [
            line
            for line in report_text(whole, []).splitlines()
            if line.startswith("| Fast, pool 0 | wrn-16-1 | logits |")
        ]
        assert line == (
            "| Fast, pool 0 | wrn-16-1 | logits | 3 of 4 | 10 | 40 | 20.0 to 50.0 % "
            "| 2.8 | 87.5 % | 0.63 | 1.35 |"
        )

    def test_proportions_are_those_of_the_students_own_pool(self, whole):
        assert whole.proportions_of(CELL) is whole.dictionaries[0].proportions
        assert whole.proportions_of(replace(CELL, method="dfnd")) is None
        assert whole.proportions_of(replace(CELL, pool_seed=3)) is None

    def test_a_dictionary_built_anew_has_other_proportions(self, whole):
        cards = {
            cell: {**card, "facts": {**card["facts"], "rebuilt": [7]}}
            for cell, card in whole.students.items()
        }
        assert replace(whole, students=cards).proportions_of(CELL) is None
