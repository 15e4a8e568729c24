"""Commands change values of params.yaml and nothing else of it; a human's edits stay."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.errors import UserError
from pipelines.params.edit import checked, prepare, with_values, write_preset
from pipelines.params.presets import preset_text

SMOKE = "digits-smoke"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "params.yaml"
    file.write_text(preset_text(SMOKE))
    return file


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    """Return the lines that differ; their number and their comments, in place, must be the same."""
    changed = []
    for old, new in zip(before.splitlines(), after.splitlines(), strict=True):
        if old == new:
            continue
        old_value, _, old_comment = old.partition("#")
        new_value, _, new_comment = new.partition("#")
        assert (len(old_value), old_comment) == (len(new_value), new_comment)
        changed.append((old_value.strip(), new_value.strip()))
    return changed


def test_values_are_replaced_where_they_stand_and_comments_are_kept() -> None:
    before = preset_text(SMOKE)
    values = {
        "grid.seeds": [0, 1, 2],
        "methods.dfnd.num_selected": 32,
        "compensation.scale": 1.5,
        "dictionary.artifact": "elsewhere",
    }
    after = with_values(before, values)
    assert changed_lines(before, after) == [
        ("seeds: [0]", "seeds: [0, 1, 2]"),
        ("num_selected: 64", "num_selected: 32"),
        ("artifact: null", "artifact: elsewhere"),
        ("scale: shift", "scale: 1.5"),
    ]
    params = checked(after)
    assert tuple(params.grid.seeds) == (0, 1, 2)
    assert params.dictionary.artifact == "elsewhere"


def test_no_value_leaves_every_byte_as_it_was() -> None:
    for name in (SMOKE, "digits"):
        assert with_values(preset_text(name), {}) == preset_text(name)


@pytest.mark.parametrize("key", ["metods.dfnd.num_selected", "preset.name", "methods.dfnd.open.x"])
def test_a_key_without_a_place_is_an_error(key: str) -> None:
    with pytest.raises(UserError) as caught:
        with_values(preset_text(SMOKE), {key: 1})
    assert key in str(caught.value)


# -- what a run was asked for ----------------------------------------------------------------------


def test_nothing_asked_for_leaves_the_file_alone(file: Path) -> None:
    file.write_text("not: even valid")
    prepare(file.parent, preset=None, seeds=None)
    assert file.read_text() == "not: even valid"
    assert list(file.parent.iterdir()) == [file]


def test_seeds_are_set_in_a_file_of_ones_own_too(file: Path) -> None:
    edited = file.read_text().replace("num_epochs: 2", "num_epochs: 3") + "# mine\n"
    file.write_text(edited)
    prepare(file.parent, preset=None, seeds=[3, 4])
    params = load_params(file)
    assert tuple(params.grid.seeds) == (3, 4)
    assert params.teacher.num_epochs == 3
    assert file.read_text().endswith("# mine\n")
    assert len(changed_lines(edited, file.read_text())) == 1


def test_seeds_that_are_there_already_change_nothing(file: Path) -> None:
    before = file.stat().st_mtime_ns
    prepare(file.parent, preset=None, seeds=[0])
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("seeds", [[], [-1], [0, 0]])
def test_seeds_that_are_not_valid_write_nothing(file: Path, seeds: list[int]) -> None:
    before = file.read_text()
    with pytest.raises(UserError) as caught:
        prepare(file.parent, preset=None, seeds=seeds)
    assert "grid.seeds" in str(caught.value)
    assert file.read_text() == before


def test_a_preset_makes_the_file_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        prepare(tmp_path, preset=None, seeds=[1])
    prepare(tmp_path, preset=SMOKE, seeds=[1])
    params = load_params(tmp_path / "params.yaml")
    assert (params.preset, tuple(params.grid.seeds)) == (SMOKE, (1,))


def test_a_preset_replaces_what_a_preset_or_a_run_wrote(file: Path) -> None:
    prepare(file.parent, preset="digits", seeds=None)
    assert file.read_text() == preset_text("digits")
    prepare(file.parent, preset=None, seeds=[5, 6])
    prepare(file.parent, preset=SMOKE, seeds=[7])
    prepare(file.parent, preset="digits", seeds=[8])
    params = load_params(file)
    assert (params.preset, tuple(params.grid.seeds)) == ("digits", (8,))
    prepare(file.parent, preset="digits", seeds=None)
    assert file.read_text() == preset_text("digits")


def test_a_preset_does_not_replace_the_edits_of_a_human(file: Path) -> None:
    prepare(file.parent, preset=SMOKE, seeds=[1, 2])  # a run wrote it, then it was edited
    edited = file.read_text().replace("batch_size: 128", "batch_size: 64")
    file.write_text(edited)
    with pytest.raises(UserError) as caught:
        prepare(file.parent, preset="digits", seeds=None)
    assert "edits" in str(caught.value)
    assert "--force" in str(caught.value)
    assert file.read_text() == edited
    # Nor do seeds set by a run make them the run's own.
    prepare(file.parent, preset=None, seeds=[3])
    with pytest.raises(UserError):
        prepare(file.parent, preset="digits", seeds=None)
    assert "batch_size: 64" in file.read_text()


def test_a_preset_that_is_there_already_is_no_matter_of_edits(file: Path) -> None:
    prepare(file.parent, preset=SMOKE, seeds=[0])
    assert file.read_text() == preset_text(SMOKE)


def test_no_such_preset(file: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'digits-smoke'"):
        prepare(file.parent, preset="digit-smoke", seeds=None)


def test_a_run_that_comes_to_nothing_puts_the_file_back(file: Path) -> None:
    before = file.read_text()
    put_back = prepare(file.parent, preset="digits", seeds=[5])
    assert load_params(file).preset == "digits"
    put_back()
    assert file.read_text() == before
    prepare(file.parent, preset="digits", seeds=None)  # and it is still nobody's edit


def test_the_same_preset_keeps_its_places_of_data(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(preset_text("cifar10-cpu", data="/elsewhere"))
    before = load_params(file)
    prepare(tmp_path, preset="cifar10-cpu", seeds=[7])
    after = load_params(file)
    assert tuple(after.grid.seeds) == (7,)
    assert after.data.path == before.data.path != load_params_of("cifar10-cpu").data.path
    assert after.methods == before.methods


def load_params_of(name: str) -> Params:
    return checked(preset_text(name))


def test_a_preset_command_takes_what_a_run_wrote_for_nobodys_edit(file: Path) -> None:
    prepare(file.parent, preset=None, seeds=[3])
    write_preset("digits", file)
    assert load_params(file).preset == "digits"


LISTS = """grid:
  seeds: # which
  - 0   # the first
  - 1   # the second
  # before the next
  pool_seeds:   # pools
    - 3

# of the data
data: {x: 1}
"""


@pytest.mark.parametrize("seeds", [[5], [5, 6, 7], []])
@pytest.mark.parametrize("pool_seeds", [[4], [3, 4], []])
def test_a_list_with_an_item_a_line_is_still_yaml(seeds: list[int], pool_seeds: list[int]) -> None:
    after = with_values(LISTS, {"grid.seeds": seeds, "grid.pool_seeds": pool_seeds})
    tree = YAML(typ="safe", pure=True).load(after)
    assert tree == {"grid": {"seeds": seeds, "pool_seeds": pool_seeds}, "data": {"x": 1}}
    # What stands between the keys stays; what was said of an item that is gone goes with it.
    assert after.index("# before the next") < after.index("pool_seeds:")
    assert after.index("# of the data") < after.index("data:")
    assert "the first" not in after and "the second" not in after
    assert after.count("# which") == bool(seeds) and after.count("- ") == len(seeds + pool_seeds)


@pytest.mark.parametrize("text", ["grid: [", "", preset_text(SMOKE).replace("grid:", "gird:")])
def test_what_is_wrong_is_wrong_in_params_yaml(text: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(text)
    said = " ".join(caught.value.lines())
    assert tempfile.gettempdir() not in said
    assert "params.yaml" in said


@pytest.mark.parametrize("seeds", [None, [7]])
def test_the_same_preset_keeps_what_was_put_into_it(
    tmp_path: Path, seeds: list[int] | None
) -> None:
    file = tmp_path / "params.yaml"
    write_preset("digits", file, student="wrn-16-1", budget=0.5)
    written = file.read_text()
    prepare(tmp_path, preset="digits", seeds=seeds)
    params = load_params(file)
    assert (params.budget, params.grid.students) == (0.5, ("wrn-16-1",))
    assert params.grid.seeds == (tuple(seeds) if seeds else load_params_of("digits").grid.seeds)
    if seeds is None:
        assert file.read_text() == written
    prepare(tmp_path, preset="digits", seeds=None)  # what the run wrote is nobody's edit either
    assert file.read_text() == written
