"""What holds for the code as a whole: who imports whom, and that nothing loads a pickle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdci
from kdci.config.catalog import BACKBONE_NAMES, CUSTOM, DATASETS
from tests.project_code import ROOT

PACKAGES = ("kdci", "stages", "pipelines")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
UNPICKLER_FILE = ROOT / "kdci/data/datasets/cifar_batches.py"
"""CIFAR-10 is published as pickles; its reader admits containers and arrays only."""
PICKLERS = {"pickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "yaml"}
"""Modules whose loaders run code; `yaml` is PyYAML, whose ``load`` may."""


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` of an attribute chain; what is no name is `?`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def loads_a_pickle(tree: ast.AST) -> list[str]:
    """Return imports of modules that load pickles."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.split(".")[0] in PICKLERS else []
    return found


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Return calls that can run code found in a file or in a string (S1)."""
    forbidden = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "torch.hub.load",
        "torch.jit.load",
        "torch.serialization.add_safe_globals",
    }
    found = []
    for name, call in calls(tree):
        keywords = {k.arg: k.value for k in call.keywords}
        if name in forbidden:
            found.append(name)
        if name == "torch.load" and "weights_only" not in keywords:
            found.append(f"{name} without weights_only")
        for keyword, bad in (("weights_only", False), ("allow_pickle", True), ("shell", True)):
            value = keywords.get(keyword)
            # Anything but the safe constant: a variable could hold the other one.
            if value is not None and not (
                isinstance(value, ast.Constant) and value.value is (not bad)
            ):
                found.append(f"{name}({keyword})")
        if keywords.get("typ") is not None and ast.unparse(keywords["typ"]) == "'unsafe'":
            found.append(f"{name}(typ='unsafe')")
    return found


class TestNoPickle:
    def test_there_is_code_to_look_at(self) -> None:
        assert len(FILES) > 40 and UNPICKLER_FILE in FILES

    @pytest.mark.parametrize("check", [loads_a_pickle, unsafe_calls])
    def test_nothing_loads_code(self, check: Callable[[ast.AST], list[str]]) -> None:
        found = {
            str(file.relative_to(ROOT)): names
            for file in FILES
            if file != UNPICKLER_FILE or check is unsafe_calls
            if (names := check(ast.parse(file.read_text(encoding="utf-8"))))
        }
        assert found == {}

    @pytest.mark.parametrize(
        "line",
        [
            "import pickle",
            "from joblib import load",
            "import dill as d",
            "torch.load(f)",
            "torch.load(f, weights_only=False)",
            "torch.load(f, weights_only=flag)",
            "np.load(f, allow_pickle=True)",
            "torch.hub.load('a', 'b')",
            "import yaml",
            "YAML(typ='unsafe')",
            "eval('1')",
            "exec(code)",
            "subprocess.run(line, shell=True)",
        ],
    )
    def test_the_checks_see(self, line: str) -> None:
        tree = ast.parse(line)
        assert loads_a_pickle(tree) or unsafe_calls(tree)

    @pytest.mark.parametrize(
        "line",
        [
            "model.eval()",
            "np.load(f, allow_pickle=False)",
            "torch.load(f, weights_only=True)",
            "YAML(typ='safe').load(text)",
            "json.load(f)",
        ],
    )
    def test_the_checks_let_pass(self, line: str) -> None:
        tree = ast.parse(line)
        assert not loads_a_pickle(tree) and not unsafe_calls(tree)

    def test_the_one_unpickler_refuses_names(self) -> None:
        """It is the subclass with a ``find_class`` of its own, and nothing else of pickle's."""
        tree = ast.parse(UNPICKLER_FILE.read_text(encoding="utf-8"))
        used = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and (name := dotted(node)).startswith("pickle.")
        }
        assert {name for name in used if not name[7:].isupper()} == {
            "pickle._Unpickler",
            "pickle._Unpickler.dispatch",
            "pickle.UnpicklingError",
        }
        called = {name for name, _ in calls(tree)}
        assert "pickle._Unpickler" not in called
        (unpickler,) = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and [dotted(base) for base in node.bases] == ["pickle._Unpickler"]
        ]
        methods = [node.name for node in unpickler.body if isinstance(node, ast.FunctionDef)]
        assert methods == ["find_class"]
        assert not [name for name, _ in calls(unpickler) if name.startswith("super")]


class TestImports:
    def test_contracts(self) -> None:
        """Layers, no orchestrator in the library, KDCI apart from the methods."""
        linter = Path(sys.executable).with_name("lint-imports")
        if not linter.exists():
            pytest.skip("import-linter is not installed")
        result = subprocess.run(
            [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "0 broken" in result.stdout

    @pytest.mark.parametrize(
        "modules",
        [
            "kdci",
            "kdci.config.params_file, kdci.store.layout, kdci.config.catalog, kdci.errors",
            "kdci.store.artifacts, kdci.store.metrics",
        ],
    )
    def test_what_is_cheap_to_import_loads_no_torch(self, modules: str) -> None:
        heavy = "('torch', 'torchvision', 'sklearn', 'scipy', 'mlflow', 'prefect', 'ray', 'dvc')"
        code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == "[]"


class TestPublicNames:
    def test_resolve_when_they_are_used(self) -> None:
        from kdci.deconfounding.compensation import Compensation
        from kdci.deconfounding.confounder import ConfounderDictionary, build_dictionary
        from kdci.models.students import load_student

        homes = {
            "Compensation": Compensation,
            "ConfounderDictionary": ConfounderDictionary,
            "build_dictionary": build_dictionary,
            "load_student": load_student,
        }
        assert sorted(kdci.__all__) == sorted(homes)
        for name, home in homes.items():
            assert getattr(kdci, name) is home

    def test_others_are_attribute_errors(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'distil'"):
            _ = kdci.distil
        assert not hasattr(kdci, "__wrapped__")


class TestNames:
    def test_catalog_and_builders_agree(self) -> None:
        from kdci.data.datasets.places import PLACES
        from kdci.models import BACKBONES

        assert set(BACKBONE_NAMES) == set(BACKBONES)
        assert {*DATASETS, CUSTOM} == {
            name for name, spec in DATASETS.items() if spec.bundled
        } | set(PLACES)
        assert [spec.name for spec in DATASETS.values()] == list(DATASETS)

    def test_specs_are_whole(self) -> None:
        for spec in DATASETS.values():
            assert len(spec.class_names) == len(set(spec.class_names)) == spec.num_classes
            assert len(spec.mean) == len(spec.std) == spec.channels


def test_the_committed_cells_are_those_of_the_params_and_the_code() -> None:
    """So that `dvc repro` on a fresh clone runs at once: `kdci check` renews the file."""
    from kdci.config.params_file import load_params
    from kdci.graph.build import graph_of
    from kdci.graph.cells import CELLS_FILE, cells_text
    from kdci.graph.code import Sources

    graph = graph_of(load_params(ROOT / "params.yaml", methods=False), ROOT)
    expected = cells_text(graph, Sources(ROOT))
    assert (ROOT / CELLS_FILE).read_text() == expected, "run `kdci check` and commit cells.yaml"
