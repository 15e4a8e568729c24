from __future__ import annotations

import numpy as np
import pytest
import torch

from kdci.artifacts import open_artifact


@pytest.fixture(params=["fast", "dfnd"])
def method(request):
    return request.param


@pytest.fixture
def made(smoke_project, method):
    path = smoke_project.layout.dictionary("wrn-10-1", method, 0)
    return open_artifact(path, kind="dictionary")


def test_prototypes_are_the_means_of_their_share_of_the_predictions(smoke_project, made, method):
    """sum_i P(z_i) z_i is the mean of all predictions, whatever the clusters are."""
    pool = open_artifact(smoke_project.layout.pool("wrn-10-1", method, 0), kind="pool")
    logits = pool.tensors("predictions.safetensors")["logits"]
    tensors = made.tensors("dictionary.safetensors")
    mean = (tensors["proportions"][:, None] * tensors["prototypes"]).sum(dim=0)
    torch.testing.assert_close(mean, logits.mean(dim=0), rtol=1e-4, atol=1e-4)
    sizes = np.array(made.facts["sizes"])
    assert sizes.sum() == made.facts["num_predictions"] == len(logits)
    assert tensors["proportions"].numpy() == pytest.approx(sizes / sizes.sum())
    assert made.facts["num_prototypes"] == len(sizes) == len(made.facts["top_class"])
    assert made.facts["requested"] == 4


@pytest.mark.parametrize(("space", "dimension"), [("probabilities", 10), ("features", 64)])
def test_space_decides_what_is_clustered(built, call, space, dimension):
    built.edit(dictionary__space=space, compensation__fusion="linear")
    built.build(call("dictionary"))
    assert built.card(call("dictionary"))["facts"]["dimension"] == dimension
    assert built.run(call("distill_kdci")) == 0


def test_another_dictionary_is_adopted_as_it_is(built, call):
    other = built.layout.dictionary("wrn-10-1", "dfnd", 0)
    built.edit(dictionary__artifact=str(other.relative_to(built.root)))
    built.build(call("dictionary"))
    mine = built.layout.dictionary("wrn-10-1", "fast", 0) / "dictionary.safetensors"
    assert mine.read_bytes() == (other / "dictionary.safetensors").read_bytes()
    assert built.card(call("dictionary"))["facts"]["adopted"] is True
    assert built.run(call("distill_kdci")) == 0


def test_same_seed_same_bytes(built, call, method):
    expected = built.content(call("dictionary", method))
    built.build(call("dictionary", method))
    assert built.content(call("dictionary", method)) == expected


def test_dictionary_does_not_depend_on_how_many_images_are_scored_at_once(built, call):
    """`evaluate` is no params block of this stage, so none of its values may matter."""
    expected = built.content(call("dictionary"))
    built.edit(evaluate__batch_size=3).build(call("dictionary"))
    assert built.content(call("dictionary")) == expected
