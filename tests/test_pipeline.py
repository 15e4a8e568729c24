"""dvc.yaml and the stages say the same, and DVC runs again what a change reaches, no more."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kdci.deconfounding.arms import ARMS, FURTHER_ARMS
from kdci.substitution.registry import method_names
from tests.project_code import ROOT

ALL = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
CONTROLS = {
    "substitute_control": "substitute",
    "distill_control": "distill_vanilla",
    "evaluate_control": "evaluate",
}
"""Entries for controls, each the twin of a method's."""
SHIFTS = {
    "dictionary_shift": "dictionary",
    "distill_shift": "distill_arm",
    "evaluate_shift": "evaluate",
}
"""Entries for pools with a known shift, each the twin of a method's."""
OTHERS = {
    "teacher_other": "teacher",
    "substitute_other": "substitute",
    "dictionary_other": "dictionary",
}
"""Entries for another pre-trained model, each the twin of the teacher's."""
ARM_ENTRIES = {"distill_arm": "distill_kdci", "distill_other": "distill_kdci"}
"""Entries for further arms; what they add to KDCI's is told in the tests."""
PAIRS = {
    f"{name}_pair": name
    for name in (
        *("distill_vanilla", "distill_kdci", "distill_arm", "distill_control"),
        *("evaluate", "evaluate_control", "distill_other"),
    )
}
"""Entries for listed pairs, each the twin of the product of teachers and students."""
TWINS = {**CONTROLS, **SHIFTS, **OTHERS, **ARM_ENTRIES, **PAIRS}
DVC = {name: entry for name, entry in ALL.items() if name not in {*TWINS, "shift"}}
MODULES = ("teacher", "substitute", "dictionary", "distill", "evaluate", "report")
FURTHER = {f"distill_{name}" for name in ARMS} - {"distill_vanilla", "distill_kdci"}
STAGES = {
    stage.name: stage
    for module in MODULES
    for stage in importlib.import_module(f"stages.{module}").STAGES
    if stage.name not in FURTHER
}
PLACES = {"preset": "digits-smoke"}


# -- what dvc.yaml says --------------------------------------------------------------------------


def test_stages_are_those_of_the_code():
    assert list(DVC) == ["teacher", "substitute", "dictionary", "distill_vanilla", "distill_kdci",
                         "evaluate", "report"]  # fmt: skip
    assert set(DVC) == set(STAGES)
    assert set(ALL) - set(DVC) == {*TWINS, "shift"}


@pytest.mark.parametrize(("control", "twin"), CONTROLS.items())
def test_a_control_is_run_as_a_method_is_on_the_first_seeds(control, twin):
    """The same command, dependencies and places; `grid.controls` in the place of the methods."""
    fixed = {
        "${item.pool_seed}": "${grid.pool_seeds[0]}",
        "${item.seed}": "${grid.seeds[0]}",
        "${item.method}": "${item.control}",
    }
    text = json.dumps({key: value for key, value in DVC[twin].items() if key != "matrix"})
    for of_method, of_control in fixed.items():
        text = text.replace(of_method, of_control)
    found = {key: value for key, value in ALL[control].items() if key != "matrix"}
    assert found == json.loads(text)
    matrix = {"teacher": "${grid.teachers}", "control": "${grid.controls}"}
    if twin != "substitute":
        matrix["student"] = "${grid.students}"
    assert ALL[control]["matrix"] == matrix


@pytest.mark.parametrize(("listed", "twin"), PAIRS.items())
def test_a_listed_pair_is_run_as_one_of_the_product_is(listed, twin):
    changes = {
        "${item.teacher}": "${item.pair.teacher}",
        "${item.student}": "${item.pair.student}",
    }
    axes, pairs = dict(ALL[twin]["matrix"]), "${grid.pairs}"
    if twin == "distill_other":  # each pair has a lender of its own
        changes["${item.other}"] = "${item.pair.other}"
        assert axes.pop("other") == "${grid.others}"
        pairs = "${grid.other_pairs}"
    assert without_matrix(listed) == swapped(ALL[twin], changes)
    assert (axes.pop("teacher"), axes.pop("student")) == ("${grid.teachers}", "${grid.students}")
    expected = [("pair", pairs), *((axis, axes[axis]) for axis in axes)]
    assert list(ALL[listed]["matrix"].items()) == expected


def test_what_has_a_student_has_an_entry_for_pairs():
    """Shifts alone have none: the params refuse them beside pairs."""
    of_students = {name for name, entry in ALL.items() if "student" in entry.get("matrix", {})}
    assert of_students - {"distill_shift", "evaluate_shift"} == set(PAIRS.values())


def swapped(entry, changes):
    """Return an entry of dvc.yaml with texts replaced, its matrix left out."""
    text = json.dumps({key: value for key, value in entry.items() if key != "matrix"})
    for before, after in changes.items():
        text = text.replace(before, after)
    return json.loads(text)


def without_matrix(name):
    return {key: value for key, value in ALL[name].items() if key != "matrix"}


def matrix_with(twin, changes):
    """Return a twin's matrix with axes renamed: old name to new name and values."""
    return {
        changes.get(axis, (axis,))[0]: changes.get(axis, (axis, values))[1]
        for axis, values in ALL[twin]["matrix"].items()
    }


@pytest.mark.parametrize(("shift", "twin"), SHIFTS.items())
def test_a_known_shift_is_run_as_a_method_is(shift, twin):
    """The same command, dependencies and places; `grid.shifts` in the place of the methods."""
    changes = {"${item.method}": "${item.shift}"}
    twin_entry = swapped(ALL[twin], changes)
    found = without_matrix(shift)
    if shift == "distill_shift":
        # Its images come from the base's pool, its student's recipe is the base's.
        at = twin_entry["deps"].index("kdci/methods/${item.shift}.py")
        twin_entry["deps"][at] = "kdci/substitution/resampled.py"
        at = twin_entry["params"].index("methods.${item.shift}")
        twin_entry["params"][at : at + 2] = [
            "shift",
            "shifts.${item.shift}",
            "recipes.${shift.base}",
        ]
    if shift == "evaluate_shift":
        twin_entry["params"][-2:] = ["grid.shift_arms"]
        assert ALL[twin]["params"][-2:] == ["grid.arms", "grid.others"]
    assert found == twin_entry
    axes = {"method": ("shift", "${grid.shifts}"), "arm": ("arm", "${grid.shift_arms}")}
    assert ALL[shift]["matrix"] == matrix_with(twin, axes)


@pytest.mark.parametrize(("other", "twin"), OTHERS.items())
def test_the_other_model_is_run_as_the_teacher_is(other, twin):
    changes = {
        f"python -m stages.{twin} ": f"python -m stages.{twin} --other ",
        "${item.teacher}": "${item.other}",
        "artifacts/${preset}/": "artifacts/${preset}/other/",
        '"data': '"other.data',
    }
    assert without_matrix(other) == swapped(ALL[twin], changes)
    assert ALL[other]["matrix"] == matrix_with(twin, {"teacher": ("other", "${grid.others}")})


@pytest.mark.parametrize(
    ("entry", "arm", "axis", "values"),
    [
        ("distill_arm", "${item.arm}", "arm", "${grid.arms}"),
        ("distill_other", "kdci_other", "other", "${grid.others}"),
    ],
)
def test_a_further_arm_is_run_as_kdci_is(entry, arm, axis, values):
    changes = {"--variant kdci": f"--variant {arm}", "/kdci/pool": f"/{arm}/pool"}
    twin, found = swapped(ALL["distill_kdci"], changes), without_matrix(entry)
    if entry == "distill_other":
        at = twin["deps"].index(DICTIONARY)
        twin["deps"][at] = DICTIONARY.replace("dictionaries/", "other/dictionaries/").replace(
            "teacher", "other"
        )
    else:
        assert set(found["deps"]) - set(twin["deps"]) == {
            "kdci/deconfounding/logit_adjustment.py",
            "kdci/deconfounding/strata.py",
        }
        assert set(found["params"]) - set(twin["params"]) == {"intervention"}
        found = {
            **found,
            **{key: [one for one in found[key] if one in twin[key]] for key in ("deps", "params")},
        }
    assert found == twin
    before = list(ALL["distill_kdci"]["matrix"].items())
    assert list(ALL[entry]["matrix"].items()) == [*before[:3], (axis, values), *before[3:]]


DICTIONARY = "artifacts/${preset}/dictionaries/${item.teacher}/${item.method}/pool${item.pool_seed}"


def test_further_arms_depend_on_no_block_that_their_entry_lacks():
    from stages.distill import STAGES as DISTILL_STAGES

    stated = {re.sub(r"\$\{item\.(\w+)\}", r"{\1}", key) for key in ALL["distill_arm"]["params"]}
    blocks = {stage.arm: set(stage.blocks) for stage in DISTILL_STAGES}
    assert set().union(*(blocks[arm] for arm in FURTHER_ARMS)) == stated
    assert blocks["kdci_other"] == blocks["kdci"]
    assert not blocks["class_balanced"] & {"compensation"}


def test_shift_entry_is_that_of_its_stage():
    from kdci.store.layout import Layout
    from stages.shift import STAGES as SHIFT_STAGES

    entry, (stage,) = ALL["shift"], SHIFT_STAGES
    assert tuple(entry["matrix"]) == ("teacher", "shift", "pool_seed")
    assert entry["params"] == [
        *("runtime", "data.name", "data.facts", "shift", "shifts.${item.shift}")
    ]
    assert stage.blocks == ("runtime", "data.name", "data.facts", "methods.{method}")
    layout = Layout(Path("/project"), PLACES["preset"])
    cell = {"teacher": "wrn-10-1", "method": "tail", "pool_seed": 3}
    values = {"teacher": "wrn-10-1", "shift": "tail", "pool_seed": 3}
    artifact = stage.artifact(layout, cell)
    assert [filled(out, values) for out in entry["outs"]] == [
        str(place.relative_to(layout.root)) for place in (artifact, layout.timing(artifact))
    ]
    assert filled(entry["cmd"], values).split()[2:] == [
        *("stages.shift", "--teacher", "wrn-10-1", "--method", "tail", "--pool-seed", "3")
    ]
    modules = reached("shift", "resampled") - OPEN_WORLD
    files = {str(source_of(module).relative_to(ROOT)) for module in modules}
    deps = {dep for dep in entry["deps"] if not dep.startswith("artifacts/")}
    assert {file for file in files if not covered(file, deps)} == set()
    assert {dep for dep in deps if not any(covered(file, {dep}) for file in files)} == set()


@pytest.mark.parametrize("name", DVC)
def test_params_are_the_blocks_of_the_stage(name):
    stated = [re.sub(r"\$\{item\.(\w+)\}", r"{\1}", key) for key in DVC[name]["params"]]
    assert sorted(stated) == sorted(STAGES[name].blocks)


@pytest.mark.parametrize("name", DVC)
def test_matrix_is_the_axes_in_their_order(name):
    assert tuple(DVC[name].get("matrix", {})) == STAGES[name].axes
    for axis, values in DVC[name].get("matrix", {}).items():
        assert values == f"${{grid.{axis}s}}"


def filled(text, cell):
    """Return ``text`` with DVC's templates filled in."""
    values = {**PLACES, **{f"item.{axis}": value for axis, value in cell.items()}}
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(values[match[1]]), text)


def grid_cells(name):
    axes = STAGES[name].axes
    values = {
        "teacher": ["wrn-10-1", "wrn-16-1"],
        "student": ["wrn-10-1", "vgg-11"],
        "method": ["fast", "dfnd"],
        "pool_seed": [0, 3],
        "seed": [0, 12],
    }
    for point in product(*(values[axis] for axis in axes)):
        yield dict(zip(axes, point, strict=True))


@pytest.mark.parametrize("name", [name for name in DVC if name != "report"])
def test_outs_and_command_are_those_of_the_layout(name):
    from kdci.store.layout import Layout

    layout = Layout(Path("/project"), PLACES["preset"])
    for cell in grid_cells(name):
        artifact = STAGES[name].artifact(layout, cell)
        places = [artifact, layout.timing(artifact)]
        outs = [filled(out, cell) for out in DVC[name]["outs"]]
        assert outs == [str(place.relative_to(layout.root)) for place in places]
        module, *arguments = filled(DVC[name]["cmd"], cell).split()[2:]
        assert module == f"stages.{name.split('_')[0]}"
        flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
        variant = {"--variant": name.split("_")[1]} if "_" in name else {}
        axes = {f"--{axis.replace('_', '-')}": str(value) for axis, value in cell.items()}
        assert flags == {**variant, **axes}


def parents_of(name, cell, layout):
    """Return the artifacts that a stage's code opens, by the layout."""
    at = {axis: value for axis, value in cell.items() if axis in ("teacher", "method")}
    if name == "report":
        return {layout.artifacts / kind for kind in
                ("teachers", "pools", "dictionaries", "evaluations")}  # fmt: skip
    found = set() if name == "teacher" else {layout.teacher(at["teacher"])}
    if name in ("dictionary", "distill_vanilla", "distill_kdci"):
        found.add(layout.pool(**at, pool_seed=cell["pool_seed"]))
    if name == "distill_kdci":
        found.add(layout.dictionary(**at, pool_seed=cell["pool_seed"]))
    if name == "evaluate":
        found.add(layout.pool(**at, pool_seed=0).parent)
        found.add(layout.students(at["teacher"], cell["student"], at["method"]))
    return found


@pytest.mark.parametrize("name", DVC)
def test_artifact_deps_are_the_parents_by_the_layout(name):
    from kdci.store.layout import Layout

    layout = Layout(Path("/project"), PLACES["preset"])
    for cell in grid_cells(name):
        deps = {filled(dep, cell) for dep in DVC[name]["deps"] if dep.startswith("artifacts/")}
        parents = {str(p.relative_to(layout.root)) for p in parents_of(name, cell, layout)}
        assert deps == parents


def test_stage_names_are_those_of_dvc(smoke_project, dvc):
    from stages._session import StageIdentity

    names = [
        StageIdentity(call.stage, dict(call.cell), {}, Path()).name
        for call in smoke_project.calls()
    ]
    assert sorted(names) == sorted(dvc.names())
    assert sorted(names) == sorted(call.name for call in smoke_project.calls())


FULL = {
    "grid__methods": ["fast"],
    "grid__controls": ["noise"],
    "grid__arms": ["stratified", "logit_adjusted"],
    "grid__others": ["wrn-16-1"],
    "grid__shifts": ["balanced", "tail"],
    "grid__shift_arms": ["vanilla", "kdci_stratified"],
    "grid__pool_seeds": [0, 3],
    "compensation__fusion": "residual",
    "other": {"data": {"name": "digits5", "path": None, "test": "test", "facts": None}},
    "shift": {"base": "fast", "num_images": 40, "temperature": 4.0},
    "shifts": {"balanced": {}, "tail": {"imbalance": 4.0}},
}
"""Params that use every axis of the grid."""


def names_and_slots(recorded, edits):
    """Return DVC's names of the stages of edited params, and tracking's view of them."""
    from pipelines.tracking.reading.files import slots

    project, dvc = recorded
    original = (dvc.root / "params.yaml").read_text()
    try:
        project.edit(**edits)
        return dvc.names(), slots(project.layout, project.params.grid)
    finally:
        (dvc.root / "params.yaml").write_text(original)


def test_tracking_knows_every_stage_by_the_name_it_has_in_dvc(recorded):
    names, found = names_and_slots(recorded, FULL)
    teachers, pools, dictionaries = 2, 2 + 1 + 2 * 2 + 2, 2 + 2 * 2 + 2
    students, evaluations = 2 * 5 + 1 + 2 * 2 * 2, 1 + 1 + 2
    expected = teachers + pools + dictionaries + students + evaluations + 1
    assert len(set(names)) == len(names) == expected
    assert sorted(slot.dvc_stage for slot in found) == sorted(set(names) - {"report"})
    assert len({slot.path for slot in found}) == len(found)


def test_listed_pairs_are_what_runs_and_no_other(recorded):
    """Two teachers and three students make three pairs here, not six."""
    pairs = [("wrn-16-1", "wrn-10-1"), ("vgg-11", "wrn-10-1"), ("vgg-11", "wrn-16-1")]
    edits = {
        **{key: value for key, value in FULL.items() if "shift" not in key},
        "grid__shifts": [],
        "grid__teachers": ["wrn-16-1", "vgg-11"],
        "grid__students": [],
        "grid__pairs": [{"teacher": teacher, "student": student} for teacher, student in pairs],
        "grid__others": ["wrn-16-1", "wrn-10-1"],
        "grid__other_pairs": [
            {"teacher": teacher, "student": student, "other": other}
            for (teacher, student), other in zip(
                pairs, ("wrn-16-1", "wrn-10-1", "wrn-10-1"), strict=True
            )
        ],
    }
    names, found = names_and_slots(recorded, edits)
    teachers, pools, dictionaries = 2 + 2, 2 * (1 * 2 + 1) + 2 * 2, 2 * 2 + 2 * 2
    students, evaluations = 3 * (2 * 5 + 1), 3 * 2
    assert len(names) == teachers + pools + dictionaries + students + evaluations + 1
    assert sorted(slot.dvc_stage for slot in found) == sorted(set(names) - {"report"})
    students_of = {(slot.cell.teacher, slot.cell.student) for slot in found if slot.cell}
    assert students_of == set(pairs)


# -- code dependencies ---------------------------------------------------------------------------

GLUE = {
    "kdci": "names that load on first use",
    "kdci.data": "a docstring",
    "kdci.store.artifacts": "writes and verifies bytes; the bytes are the callers'",
    "kdci.store.checkpoints": "saves and restores states without a change",
    "kdci.config.params": "params reach a stage by value, and those are tracked",
    "kdci.config.block": "params reach a stage by value, and those are tracked",
    "kdci.config.data": "params reach a stage by value, and those are tracked",
    "kdci.config.open_world": "params reach a stage by value, and those are tracked",
    "kdci.config.recipes": "params reach a stage by value, and those are tracked",
    "kdci.errors": "wording",
    "kdci.intake": "a docstring",
    "kdci.store.layout": "places, which dvc.yaml spells itself",
    "kdci.config.by_method": "params reach a stage by value, and those are tracked",
    "kdci.substitution": "a docstring",
    "kdci.substitution.block": "params reach a stage by value, and those are tracked",
    "kdci.store.metrics": "writes numbers that others computed",
    "kdci.config.params_file": "params reach a stage by value, and those are tracked",
    "kdci.methods": "a docstring",
    "kdci.synthesis": "a docstring",
    "kdci.substitution.registry": "picks the method's own file, which is tracked",
    "stages": "empty",
    "stages._main": "arguments and exit codes",
    "stages._progress": "output on a terminal",
    "stages._provenance": "names the code on a card",
    "stages._session": "lock, checkpoints, card",
    "stages._signals": "stopping",
    "stages._system": "looks at the process, and tells the timing alone",
}
OPEN_WORLD = {
    f"kdci.data.{name}"
    for name in (
        *("decoding", "labelled", "listing", "open_world", "open_world_pool", "parquet"),
        *("parquet_pages", "photographs", "scoring_engine", "shards"),
    )
}
DE_CONFOUNDING = {
    f"kdci.{name}"
    for name in ("additive_attention", "clustering", "compensation", "confounder", "rebuilding")
}
OF_FURTHER_ARMS = {"kdci.deconfounding.logit_adjustment", "kdci.deconfounding.strata"}
OF_SHIFTS = {"kdci.substitution.resampled"}
REACHED_BUT_UNUSED = {
    # Only a substitute stage asks its context for the open world, only a known shift's pool stays
    # as it is; arms import what they use once they are chosen.
    "substitute": OF_SHIFTS,
    "distill_vanilla": OPEN_WORLD | DE_CONFOUNDING | OF_FURTHER_ARMS | OF_SHIFTS,
    "distill_kdci": OPEN_WORLD | OF_FURTHER_ARMS | OF_SHIFTS,
}


def source_of(module):
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file if file.exists() else None


def imports_in(node: ast.AST) -> Iterator[str]:
    """Yield the project's modules that code imports, those for type checkers left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                ours = child.module.split(".")[0] in ("kdci", "stages")
                if ours:
                    yield inner if source_of(inner) else child.module
        yield from imports_in(child)


def pool_helpers(stage_tree: ast.AST) -> Iterator[str]:
    """Yield what the functions import that a stage takes from stages/_pool.py, no others."""
    used = {
        alias.name
        for node in ast.walk(stage_tree)
        if isinstance(node, ast.ImportFrom) and node.module == "stages._pool"
        for alias in node.names
    }
    body = ast.parse(source_of("stages._pool").read_text()).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    waiting, used = list(used & set(functions)), set()
    while waiting:  # with what they call of the same file
        name = waiting.pop()
        used.add(name)
        named = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
        waiting += (named & set(functions)) - used
    for node in body:
        if not isinstance(node, ast.FunctionDef) or node.name in used:
            yield from imports_in(ast.Module([node], []))


def reached(name, method):
    """Return the modules that a stage's result may depend on."""
    stage_module = f"stages.{name.split('_')[0]}"
    found, waiting = set(), [stage_module]
    while waiting:
        module = waiting.pop()
        if module in found or (module in GLUE and not module.endswith(".registry")):
            continue
        found.add(module)
        tree = ast.parse(source_of(module).read_text())
        if module == "stages._pool":
            tree_of_stage = ast.parse(source_of(stage_module).read_text())
            waiting += pool_helpers(tree_of_stage)
        elif module.endswith(".registry"):
            waiting += ["kdci.substitution.base", f"kdci.methods.{method}"]
        else:
            waiting += imports_in(tree)
        package = module.rsplit(".", 1)[0]
        if package.count("."):
            waiting.append(package)
    return found - set(GLUE)


def code_deps(name, method):
    cell = {"teacher": "t", "student": "s", "method": method, "pool_seed": 0}
    deps = {filled(dep, cell) for dep in DVC[name]["deps"] if not dep.startswith("artifacts/")}
    assert all((ROOT / dep).exists() for dep in deps)
    return deps


def covered(file, deps):
    return any(file == dep or file.startswith(f"{dep}/") for dep in deps)


@pytest.mark.parametrize("name", DVC)
def test_code_deps_are_what_the_stage_imports(name):
    unused = REACHED_BUT_UNUSED.get(name, set())
    needed_by_some = set()
    for method in method_names():
        modules = reached(name, method)
        assert unused <= modules  # an exemption that is not needed
        files = {str(source_of(module).relative_to(ROOT)) for module in modules - unused}
        assert {file for file in files if not covered(file, code_deps(name, method))} == set()
        needed_by_some |= files
    for method in method_names():
        deps = code_deps(name, method)
        assert {d for d in deps if not any(covered(f, {d}) for f in needed_by_some)} == set()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("teacher", "fast"),
        ("dictionary", "fast"),
        ("evaluate", "fast"),
        *product(("substitute", "distill_vanilla", "distill_kdci"), ("fast", "dfnd")),
    ],
)
def test_all_code_that_runs_is_a_dep_or_glue(built, call, name, method):
    """Without regard to imports: what is left out above runs no code."""
    ran = set()

    def note(frame, event, argument):
        if event == "call":
            ran.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        code = built.run(call(name, method))
    finally:
        sys.setprofile(None)
    assert code == 0
    glue = {str(source_of(module)) for module in GLUE}
    ours = {
        str(Path(file).relative_to(ROOT))
        for file in ran - glue
        if file.startswith((f"{ROOT}/kdci/", f"{ROOT}/stages/"))
    }
    assert f"stages/{name.split('_')[0]}.py" in ours
    assert {file for file in ours if not covered(file, code_deps(name, method))} == set()


# -- what DVC makes of it --------------------------------------------------------------------------


class Dvc:
    """A project that DVC has recorded; asked with changed params, never run."""

    def __init__(self, root, environment):
        self.root, self.environment = root, environment

    def __call__(self, *arguments):
        command = ["dvc", *arguments]
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def repo(self):
        from dvc.repo import Repo

        return Repo(str(self.root))

    def names(self):
        with self.repo() as repo:
            return [_name(stage) for stage in repo.index.stages]

    def stale(self, project, **values):
        """Return the stages that are stale themselves, and those with all that follow them."""
        from networkx import descendants

        params = self.root / "params.yaml"
        original = params.read_text()
        try:
            project.edit(**values)
            with self.repo() as repo:
                changed = {name.rsplit(":", 1)[-1] for name in repo.status()}
                graph = repo.index.graph  # edges go from a stage to what it depends on
                followers = {
                    _name(stage)
                    for stage in graph
                    if changed & {_name(earlier) for earlier in descendants(graph, stage)}
                }
        finally:
            params.write_text(original)
        return changed, changed | followers


def _name(stage):
    """Return a stage's name; DVC puts the file before it when asked from elsewhere."""
    return stage.addressing.rsplit(":", 1)[-1]


@pytest.fixture(scope="module")
def recorded(smoke_project, environment, tmp_path_factory):
    """The built project, with its state recorded in dvc.lock."""
    root = tmp_path_factory.mktemp("recorded") / "project"
    shutil.copytree(smoke_project.root, root)
    project = type(smoke_project)(root)
    dvc = Dvc(root, environment)
    dvc("commit", "--force", "--quiet")
    return project, dvc


@pytest.fixture(scope="module")
def dvc(recorded):
    return recorded[1]


def expected(method=None, stages=(), seeds=(0,)):
    """Return stage names of one method's cells."""
    names = set()
    for stage in stages:
        if stage in ("substitute", "dictionary"):
            names.add(f"{stage}@wrn-10-1-{method}-0")
        elif stage.startswith("distill"):
            names |= {f"{stage}@wrn-10-1-wrn-10-1-{method}-0-{seed}" for seed in seeds}
        elif stage == "evaluate":
            names.add(f"evaluate@wrn-10-1-wrn-10-1-{method}")
        else:
            names.add({"teacher": "teacher@wrn-10-1", "report": "report"}[stage])
    return names


ARM_CELLS = {
    f"distill_arm@wrn-10-1-wrn-10-1-{method}-logit_adjusted-0-0" for method in ("fast", "dfnd")
}
SHIFT_CELLS = {
    "shift@wrn-10-1-tail-0",
    "dictionary_shift@wrn-10-1-tail-0",
    "distill_shift@wrn-10-1-wrn-10-1-tail-vanilla-0-0",
    "distill_shift@wrn-10-1-wrn-10-1-tail-kdci-0-0",
    "evaluate_shift@wrn-10-1-wrn-10-1-tail",
}
DISTILL = ("distill_vanilla", "distill_kdci")
AFTER = ("evaluate", "report")


def test_nothing_is_stale_after_a_build(recorded):
    project, dvc = recorded
    assert json.loads(dvc("status", "--json")) == {}
    assert dvc.stale(project) == (set(), set())
    said = dvc("repro", "--dry")
    assert said.count("didn't change, skipping") == len(dvc.names())


@pytest.mark.parametrize(
    ("values", "changed", "followers"),
    [
        pytest.param(
            {"methods__dfnd__num_selected": 60},
            expected("dfnd", ("substitute", *DISTILL)),
            expected("dfnd", ("substitute", "dictionary", *DISTILL, *AFTER)),
            id="a method's block",
        ),
        pytest.param(
            {"methods__dfnd__open_world": {"source": "photographs", "num_images": 100}},
            expected("dfnd", ("substitute", *DISTILL)),
            expected("dfnd", ("substitute", "dictionary", *DISTILL, *AFTER)),
            id="a method's open world",
        ),
        pytest.param(
            {"recipes__fast__learning_rate": 0.05},
            expected("fast", DISTILL),
            expected("fast", (*DISTILL, *AFTER)),
            id="a method's recipe",
        ),
        pytest.param(
            {"compensation__fusion": "linear"},
            expected("fast", ("distill_kdci",)) | expected("dfnd", ("distill_kdci",)),
            expected("fast", ("distill_kdci", *AFTER)) | expected("dfnd", ("distill_kdci", *AFTER)),
            id="the compensation",
        ),
        pytest.param(
            {"dictionary__num_prototypes": 5},
            expected("fast", ("dictionary",)) | expected("dfnd", ("dictionary",)),
            expected("fast", ("dictionary", "distill_kdci", *AFTER))
            | expected("dfnd", ("dictionary", "distill_kdci", *AFTER)),
            id="the dictionary",
        ),
        pytest.param(
            {"grid__seeds": [0, 1]},
            expected("fast", ("evaluate",))
            | expected("dfnd", AFTER)
            | expected("fast", DISTILL, seeds=(1,))
            | expected("dfnd", DISTILL, seeds=(1,)),
            expected("fast", ("evaluate",))
            | expected("dfnd", AFTER)
            | expected("fast", DISTILL, seeds=(1,))
            | expected("dfnd", DISTILL, seeds=(1,)),
            id="one more seed",
        ),
        pytest.param(
            {"grid__arms": ["logit_adjusted"]},
            ARM_CELLS | expected("fast", ("evaluate",)) | expected("dfnd", AFTER),
            ARM_CELLS | expected("fast", ("evaluate",)) | expected("dfnd", AFTER),
            id="one more arm",
        ),
        pytest.param(
            {"intervention__tau": 2.0},
            set(),
            set(),
            id="what no arm of the grid uses",
        ),
        pytest.param(
            {
                "grid__shifts": ["tail"],
                "grid__shift_arms": ["vanilla", "kdci"],
                "shift": {"base": "fast", "num_images": 40, "temperature": 4.0},
                "shifts": {"tail": {"imbalance": 4.0}},
            },
            SHIFT_CELLS | {"report"},
            SHIFT_CELLS | {"report"},
            id="a known shift",
        ),
        pytest.param(
            {"grid__methods": ["fast"]},
            {"report"},
            {"report"},
            id="one method less",
        ),
        pytest.param(
            {"evaluate__deploy": "compensated"},
            expected("fast", ("evaluate",)) | expected("dfnd", ("evaluate",)),
            expected("fast", AFTER) | expected("dfnd", AFTER),
            id="how students are scored",
        ),
    ],
)
def test_change_reaches_what_depends_on_it_and_nothing_else(recorded, values, changed, followers):
    project, dvc = recorded
    assert dvc.stale(project, **values) == (changed, followers)


def test_change_of_one_methods_code_reaches_that_method_alone(recorded):
    project, dvc = recorded
    file = dvc.root / "kdci/methods/dfnd.py"
    original = file.read_bytes()
    try:
        file.write_bytes(original + b"\n# changed\n")
        changed, _ = dvc.stale(project)
    finally:
        file.write_bytes(original)
    assert changed == expected("dfnd", ("substitute", *DISTILL))


@pytest.mark.slow
def test_repro_runs_the_stale_stages_and_gives_the_bytes_of_a_build(
    recorded, smoke_project, environment, tmp_path
):
    """One real `dvc repro` from nothing, then one after a change."""
    root = tmp_path / "project"
    skip = shutil.ignore_patterns("artifacts", "report", ".kdci")
    shutil.copytree(smoke_project.root, root, ignore=lambda d, names: (
        skip(d, names) if Path(d) == smoke_project.root else []))  # fmt: skip
    project, dvc = type(smoke_project)(root), Dvc(root, environment)

    dvc("repro")
    for call in project.calls()[:-1]:
        assert project.content(call) == smoke_project.content(call), call.name
    assert json.loads(dvc("status", "--json")) == {}

    project.edit(compensation__fusion="linear")
    said = dvc("repro")
    ran = set(re.findall(r"Running stage '(\S+)'", said))
    followers = expected("fast", ("distill_kdci", *AFTER)) | expected(
        "dfnd", ("distill_kdci", *AFTER)
    )
    assert ran == followers


@pytest.mark.slow
def test_repro_runs_every_kind_of_stage(smoke_project, environment, tmp_path):
    """Arms, known shifts, a control and another model, by one real `dvc repro` from nothing."""
    root = tmp_path / "project"
    skip = shutil.ignore_patterns("artifacts", "report", ".kdci")
    shutil.copytree(smoke_project.root, root, ignore=lambda d, names: (
        skip(d, names) if Path(d) == smoke_project.root else []))  # fmt: skip
    project, dvc = type(smoke_project)(root), Dvc(root, environment)
    # A teacher and a pool that know all classes well, on every processor, or none could be
    # balanced.
    knowing = {
        "teacher__num_epochs": 14,
        "teacher__batch_size": 64,
        "methods__fast__warmup_calls": 12,
        "methods__fast__batch_size": 32,
        "methods__fast__num_steps": 10,
        "methods__fast__one_hot_weight": 3.0,
    }
    project.edit(**{**FULL, **knowing, "grid__pool_seeds": [0]})
    dvc("repro")
    assert json.loads(dvc("status", "--json")) == {}
    rows = json.loads((root / "report/results.json").read_text())
    assert {row["variant"] for row in rows if row["method"] == "fast"} == {
        "vanilla", "kdci", "stratified", "logit_adjusted", "kdci_other"
    }  # fmt: skip
    assert {row["method"] for row in rows} == {"fast", "noise", "balanced", "tail"}
    assert all(row["accuracy"] is not None for row in rows)
    report = (root / "report/report.md").read_text()
    for heading in ("## Arms", "## Known shifts", "## Distribution shift"):
        assert f"\n{heading}\n" in report
