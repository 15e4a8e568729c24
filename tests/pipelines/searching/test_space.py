"""The search space: what is read, and that everything is held against the params in advance."""

from __future__ import annotations

import pytest

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.errors import CombinedUserError, UserError
from pipelines.params.presets import FOLDER
from pipelines.searching.space import parse_distribution, read_space, require_valid


@pytest.fixture(scope="module")
def params() -> Params:
    return Params.model_validate(read_yaml(FOLDER / "digits-smoke.yaml"))


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("uniform(0, 1)", (0, 1)),
        (" loguniform( 1e-4 , 0.5 ) ", (1e-4, 0.5)),
        ("int(4, 64)", (4, 64)),
        ("choice(0.5, N, shift, null, true)", (0.5, "N", "shift", None, True)),
        ([1, "N"], (1, "N")),
    ],
)
def test_what_is_read(text, arguments):
    found = parse_distribution("key", text)
    assert found.arguments == arguments
    assert parse_distribution("key", str(found)) == found  # a search's file holds it as text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5", "no distribution"),
        ("normal(0, 1)", "unknown distribution"),
        ("loguniforn(1, 2)", "did you mean 'loguniform'"),
        ("uniform(1)", "two numbers"),
        ("uniform(true, 2)", "two numbers"),
        ("uniform(2, 1)", "lower bound below"),
        ("uniform(1, .inf)", "two numbers"),
        ("loguniform(0, 1)", "above 0"),
        ("int(1.5, 3)", "whole numbers"),
        ("choice()", "no choices"),
        ("choice(a, a)", "twice"),
        ("choice([1], 2)", "lists or blocks"),
        ("choice(a: b: c)", "can not read"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(UserError) as caught:
        parse_distribution("some.key", text)
    assert said in str(caught.value) and caught.value.subject == "some.key"


def test_keys_come_dotted_nested_and_as_options(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("compensation.scale: loguniform(0.1, 10)\ndictionary:\n  space: [logits]\n")
    space = read_space(file, ["dictionary.num_prototypes=int(2, 8)"])
    assert {key: str(each) for key, each in space.items()} == {
        "compensation.scale": "loguniform(0.1, 10)",
        "dictionary.space": "choice(logits)",
        "dictionary.num_prototypes": "int(2, 8)",
    }
    with pytest.raises(CombinedUserError, match="twice"):
        read_space(file, ["dictionary.space=choice(features)"])
    with pytest.raises(UserError, match="KEY=DISTRIBUTION"):
        read_space(None, ["dictionary.space"])
    with pytest.raises(UserError, match="names no key"):
        read_space(None, [])


def test_drawn_numbers_have_few_digits_and_stay_within_their_bounds():
    scale = parse_distribution("key", "loguniform(0.12344, 0.98766)")
    assert scale.rounded(0.55555555) == 0.5556
    assert scale.rounded(0.12344001) == 0.12344  # 0.1234 lies below
    assert scale.rounded(0.98765999) == 0.98766  # 0.9877 lies above
    assert parse_distribution("key", "choice(0.123456789)").rounded(0.123456789) == 0.123456789
    assert parse_distribution("key", "int(1, 9)").rounded(7) == 7


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        (["compensation.scal=uniform(1, 2)"], "compensation.scal", "did you mean"),
        (["compensation=choice(a)"], "compensation", "unknown key"),
        (["dictionary.num_prototypes=int(0, 5)"], "dictionary.num_prototypes", "0: input"),
        (["dictionary.num_prototypes=uniform(1, 5)"], "dictionary.num_prototypes", "integer"),
        (["compensation.fusion=choice(identity, sum)"], "compensation.fusion", "sum: input"),
        (["recipes.fast.learning_rate=uniform(-1, 1)"], "recipes.fast.learning_rate", "-1.0"),
        (
            ["compensation.fusion=choice(identity, residual)", "dictionary.space=[features]"],
            "dictionary.space",
            "no distribution",
        ),
    ],
)
def test_values_that_a_key_may_not_have(params, options, key, said):
    with pytest.raises(UserError) as caught:
        require_valid(read_space(None, options), params)
    assert caught.value.subject == key and said in str(caught.value)


def test_every_problem_is_told_at_once(params):
    space = read_space(None, ["a.b=uniform(1, 2)", "dictionary.num_prototypes=int(0, 5)"])
    with pytest.raises(CombinedUserError) as caught:
        require_valid(space, params)
    assert [problem.subject for problem in caught.value.problems] == [
        "a.b",
        "dictionary.num_prototypes",
    ]


def test_values_that_do_not_go_together(params):
    fusion = "compensation.fusion=choice(identity, residual)"
    with pytest.raises(UserError) as caught:
        require_valid(
            read_space(None, [fusion, "dictionary.space=choice(logits, features)"]), params
        )
    assert caught.value.subject == "compensation.fusion"
    assert "dictionary.space = features" in str(caught.value)
    # Alone with the params' own fusion a value may not fit, and with a searched one it may.
    good = ["compensation.fusion=choice(linear, residual)", "dictionary.space=choice(features)"]
    require_valid(read_space(None, good), params)
