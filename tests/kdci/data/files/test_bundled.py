from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from kdci.data.files.bundled import bundled_file
from kdci.data.open_world.photographs import PHOTOGRAPHS
from kdci.errors import UserError


def test_the_files_are_what_scikit_learn_reads() -> None:
    with gzip.open(bundled_file("datasets/data/digits.csv.gz"), "rt") as file:
        first = [float(value) for value in file.readline().split(",")]
    assert first == [*load_digits().data[0].tolist(), load_digits().target[0]]
    bundled = load_sample_images()
    assert len(bundled.images) == len(PHOTOGRAPHS)
    for name, image in zip(PHOTOGRAPHS, bundled.images, strict=True):
        found = np.asarray(Image.open(bundled_file(f"datasets/images/{name}.jpg")))
        assert np.array_equal(found, image)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"there is no datasets/absent\.csv"):
        bundled_file("datasets/absent.csv")


@pytest.mark.slow
def test_loading_imports_no_scikit_learn() -> None:
    """It takes longer than all that a stage does before its first step, torch aside."""
    code = (
        "import sys\n"
        "from kdci.config.catalog import DATASETS\n"
        "from kdci.data.datasets.loading import load_split\n"
        "from kdci.data.open_world.photographs import PhotographCrops\n"
        "load_split(DATASETS['digits'], path=None, split='test')\n"
        "PhotographCrops(num_images=2, image_size=16, channels=1, seed=0)\n"
        "heavy = {'sklearn', 'scipy', 'pandas', 'sympy', 'matplotlib', 'torchvision'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "\n"
