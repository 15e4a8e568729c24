from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from kdci.data.bank.mapped_images import save_npy
from kdci.deconfounding import clustering
from kdci.store.artifacts import new_artifact, open_artifact


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


def test_card_says_how_good_the_dictionary_is(smoke_project, made, method):
    """Recomputed from the logits that the pool was stored with."""
    pool = open_artifact(smoke_project.layout.pool("wrn-10-1", method, 0), kind="pool")
    logits = pool.tensors("predictions.safetensors")["logits"]
    prototypes = made.tensors("dictionary.safetensors")["prototypes"]
    distances = torch.cdist(logits, prototypes)
    nearest, classes = distances.argmin(dim=1), logits.argmax(dim=1)
    facts = made.facts
    assert torch.bincount(nearest).tolist() == facts["sizes"]
    assert facts["purity"] == pytest.approx(
        sum(int(classes[nearest == i].bincount().max()) for i in range(4)) / len(logits)
    )
    assert facts["nmi"] == pytest.approx(normalized_mutual_info_score(classes, nearest))
    own = distances.gather(1, nearest[:, None]).flatten()
    assert facts["mean_spread"] == pytest.approx(float(own.mean()), rel=1e-4)
    assert 1 < facts["effective_n"] <= facts["num_prototypes"] == 4
    for index, rows in enumerate(facts["nearest_rows"]):
        members = (nearest == index).nonzero().flatten()
        assert len(set(rows)) == len(rows) and set(rows) <= set(members.tolist())
        closest = own[members].sort().values[:8]  # two members alone are equally far
        assert own[rows].tolist() == pytest.approx(closest.tolist(), rel=1e-4)
        named = facts["top_classes"][index]
        assert named[0]["class"] == facts["top_class"][index]
        for entry in named:
            share = float((classes[members] == entry["class"]).float().mean())
            assert entry["share"] == pytest.approx(share)


def test_a_class_that_the_pool_lacks_is_in_no_prototype(smoke_project, made, method):
    pool = open_artifact(smoke_project.layout.pool("wrn-10-1", method, 0), kind="pool")
    named = {entry["class"] for classes in made.facts["top_classes"] for entry in classes}
    assert named and not named & set(pool.facts["missing_classes"])


@pytest.mark.parametrize(("space", "dimension"), [("probabilities", 10), ("features", 64)])
def test_space_decides_what_is_clustered(built, call, space, dimension):
    built.edit(dictionary__space=space, compensation__fusion="linear")
    built.build(call("dictionary"))
    assert built.card(call("dictionary"))["facts"]["dimension"] == dimension
    assert built.run(call("kdci")) == 0


def test_another_dictionary_is_adopted_as_it_is(built, call):
    other = built.layout.dictionary("wrn-10-1", "dfnd", 0)
    built.edit(dictionary__artifact=str(other.relative_to(built.root)))
    built.build(call("dictionary"))
    mine = built.layout.dictionary("wrn-10-1", "fast", 0) / "dictionary.safetensors"
    assert mine.read_bytes() == (other / "dictionary.safetensors").read_bytes()
    theirs = built.card(call("dictionary", "dfnd"))["facts"]
    assert built.card(call("dictionary"))["facts"] == {**theirs, "adopted": True}
    assert built.run(call("kdci")) == 0


@pytest.fixture
def of_dimension_7(built):
    """A project whose dictionary is one of another model, with seven classes."""
    path = built.root / "others" / "seven"
    tensors = {
        "prototypes": torch.randn(3, 7, generator=torch.Generator().manual_seed(0)),
        "proportions": torch.tensor([0.5, 0.25, 0.25]),
    }
    facts = {"space": "logits", "requested": 3, "num_prototypes": 3, "dimension": 7}
    facts |= {"sizes": [4, 2, 2], "spread": [0.1] * 3, "top_class": [6, 0, 1], "num_classes": 7}
    card = {"facts": {**facts, "num_predictions": 8, "teacher": "another", "adopted": False}}
    with new_artifact(path, kind="dictionary", card=card) as draft:
        draft.save_tensors("dictionary.safetensors", tensors)
    built.edit(dictionary__artifact="others/seven")
    return built


def test_another_models_dictionary_may_have_any_dimension(of_dimension_7, call):
    of_dimension_7.edit(compensation__fusion="residual").build(call("dictionary"))
    facts = of_dimension_7.card(call("dictionary"))["facts"]
    assert (facts["dimension"], facts["num_classes"], facts["teacher"]) == (7, 7, "another")
    assert facts["adopted"] is True
    assert len(facts["dictionary_hash"]) == 64, "the card it came with has none"
    of_dimension_7.build(call("kdci"))
    card = of_dimension_7.card(call("kdci"))
    assert card["facts"]["compensation"]["dimension"] == 7


def test_identity_needs_a_dictionary_of_the_own_classes(of_dimension_7, call, capsys):
    of_dimension_7.edit(compensation__fusion="identity").build(call("dictionary"))
    assert of_dimension_7.run(call("kdci")) == 2
    assert "use residual" in capsys.readouterr().err


def test_equal_dictionaries_have_one_hash_whatever_their_cards_say(built, call, made, method):
    tensors = made.tensors("dictionary.safetensors")
    content = b"".join(tensors[name].numpy().tobytes() for name in ("prototypes", "proportions"))
    expected = hashlib.sha256(content).hexdigest()
    assert made.facts["dictionary_hash"] == expected
    path = built.layout.dictionary("wrn-10-1", method, 0)
    built.edit(dictionary__artifact=str(path.relative_to(built.root)))
    built.build(call("dictionary", "fast" if method == "dfnd" else "dfnd"))
    adopted = built.card(call("dictionary", "fast" if method == "dfnd" else "dfnd"))
    assert adopted["facts"]["dictionary_hash"] == expected
    assert adopted["card_sha256"] != made.card["card_sha256"]


def test_a_pool_smaller_than_the_dictionary_is_a_user_error(built, call, capsys):
    built.edit(dictionary__num_prototypes=100_000)
    before = built.content(call("dictionary"))
    assert built.run(call("dictionary")) == 2
    line = capsys.readouterr().err
    assert line.startswith("kdci: error: dictionary.num_prototypes: 100000 clusters of")
    assert built.content(call("dictionary")) == before


def test_a_pool_of_one_image_gives_one_prototype(built, call):
    """A generator that collapsed: the stages go on, and the card says what happened."""
    path = built.layout.pool("wrn-10-1", "fast", 0)
    images = torch.from_numpy(np.load(path / "images.npy"))
    card = json.loads((path / "card.json").read_text())
    kept = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "card.json"}
    with new_artifact(path, kind="pool", card={"facts": card["facts"]}) as draft:
        for name, content in kept.items():
            (draft.folder / name).write_bytes(content)
        save_npy(images[:1].expand_as(images), draft.folder / "images.npy")
    built.build(call("dictionary"))
    facts = built.card(call("dictionary"))["facts"]
    assert (facts["requested"], facts["num_prototypes"], facts["effective_n"]) == (4, 1, 1.0)
    assert facts["sizes"] == [len(images)]
    built.build(call("kdci"))


def test_a_pool_may_be_larger_than_memory_holds_predictions_of(built, call, method, monkeypatch):
    """As above 200,000 images, where predictions are made anew in each pass."""
    pool = open_artifact(built.layout.pool("wrn-10-1", method, 0), kind="pool")
    logits = pool.tensors("predictions.safetensors")["logits"]
    monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", 20)
    assert len(logits) > 20
    built.build(call("dictionary", method))
    path = built.layout.dictionary("wrn-10-1", method, 0)
    made = open_artifact(path, kind="dictionary")
    tensors = made.tensors("dictionary.safetensors")
    mean = tensors["proportions"] @ tensors["prototypes"]
    torch.testing.assert_close(mean, logits.mean(dim=0), rtol=1e-4, atol=1e-4)
    assert sum(made.facts["sizes"]) == len(logits) == made.facts["num_predictions"]
    assert 0 < made.facts["purity"] <= 1
    classes = logits.argmax(dim=1)
    for rows, top in zip(made.facts["nearest_rows"], made.facts["top_classes"], strict=True):
        known = {entry["class"] for entry in top}
        assert len(top) == 3 or set(classes[rows].tolist()) <= known


def test_same_seed_same_bytes(built, call, method):
    expected = built.content(call("dictionary", method))
    built.build(call("dictionary", method))
    assert built.content(call("dictionary", method)) == expected


def test_dictionary_does_not_depend_on_how_many_images_are_scored_at_once(built, call):
    """`evaluate` is no params block of this stage, so none of its values may matter."""
    expected = built.content(call("dictionary"))
    built.edit(evaluate__batch_size=3).build(call("dictionary"))
    assert built.content(call("dictionary")) == expected
