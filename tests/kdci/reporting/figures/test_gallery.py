from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest

from kdci.config.catalog import DATASETS
from kdci.reporting.figures.drawing import draw_figures
from kdci.reporting.figures.gallery import MAX_COLUMNS, ROWS_OVER_TIME, by_class, over_time

NAMES = DATASETS["digits"].class_names


def _images(figure):
    """Return the shown pictures by their place: top to bottom, left to right."""
    found = figure.findobj(mpl.image.AxesImage)
    return sorted(found, key=lambda image: (image.get_extent()[3], image.get_extent()[0]))


def _texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def test_by_class_shows_an_image_of_each_class_that_a_pool_has(pool):
    other = replace(pool, method="dfnd", top_class=np.array([3] * 40))
    figure = by_class([pool, other], NAMES)
    shown = _images(figure)
    assert len(shown) == 3  # classes 0 and 1 of the first, 3 of the second
    assert _texts(figure).count("none") == 2 * 10 - 3
    for image, classes, of in zip(shown, (0, 1, 3), (pool, pool, other), strict=True):
        pixels = np.asarray(image.get_array())[:, :, 0]
        (rows,) = np.nonzero((of.images[:, 0] == pixels).all(axis=(1, 2)))
        assert set(of.top_class[rows]) == {classes}
    assert {"Fast", "DFND"} <= set(_texts(figure))


def test_over_time_goes_from_the_first_made_to_the_last(pool):
    mixed = replace(pool, facts={**pool.facts, "num_open_world": 20})
    assert (pool.num_made, mixed.num_made) == (40, 20)
    shown = _images(over_time([mixed]))
    assert len(shown) == ROWS_OVER_TIME * MAX_COLUMNS
    for place, image in enumerate(shown):
        pixels = np.asarray(image.get_array())[:, :, 0]
        ((row,),) = np.nonzero((pool.images[:, 0] == pixels).all(axis=(1, 2)))
        assert row >= 20  # chosen images have no time
        assert (row - 20) // 2 == place % MAX_COLUMNS


def test_chosen_images_and_controls_have_no_figure_over_time(evidence, pool):
    chosen = replace(pool, method="dfnd", facts={**pool.facts, "num_open_world": 40})
    control = replace(pool, method="noise")
    figures = draw_figures(replace(evidence, pools=[chosen, control], dictionaries=[]))
    names = [figure.name for figure in figures]
    assert "gallery-wrn-16-1.png" in names and "gallery-time-wrn-16-1.png" not in names


@pytest.mark.slow
def test_each_teacher_shows_the_first_pool_of_each_method_it_has(evidence, pool):
    """Of a grid that is half done one teacher may lack a method's pool."""
    pools = [
        replace(pool, method="fast", pool_seed=0),
        replace(pool, method="fast", pool_seed=1),
        replace(pool, method="dfnd"),
        replace(pool, method="fast", teacher="vgg-11"),
    ]
    figures = draw_figures(replace(evidence, pools=pools, dictionaries=[]))
    alone = draw_figures(replace(evidence, pools=[pools[0], pools[2]], dictionaries=[]))
    by_name = {figure.name: figure.png for figure in figures}
    assert "gallery-vgg-11.png" in by_name
    (expected,) = [figure.png for figure in alone if figure.name == "gallery-wrn-16-1.png"]
    assert by_name["gallery-wrn-16-1.png"] == expected
