"""docs/adding-a-method.md is followed to the letter, in a copy of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.project_code import ROOT

PAGE = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
FOLDERS = ("kdci", "stages", "pipelines", "tests", "docs")
FILES = (".dvc/config", ".dvcignore", "README.md", "dvc.yaml", "params.yaml", "pyproject.toml")
BLOCK = re.compile(r"(?:^(\S[^\n]*)\n\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADS = {
    "complete": re.compile(r"`([^`]+)`, complete:()"),
    "end": re.compile(r"At the end of `([^`]+)`:()"),
    "after": re.compile(r"In `([^`]+)`, after `([^`]+)`:"),
    "in place of": re.compile(r"In `([^`]+)`, in place of `([^`]+)`:"),
}
SMOKE_SIZES = {
    "methods": {"num_images: 5000": "num_images: 300"},
    "recipes": {"steps_per_epoch: 40": "steps_per_epoch: 10", "batch_size: 64": "batch_size: 32"},
}


# -- the page ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """A code block of the page, and what its head says: which file, and where in it."""

    path: str
    kind: str
    anchor: str
    code: str

    def apply(self, root: Path) -> None:
        file = root / self.path
        if self.kind == "complete":
            assert not file.exists(), f"{self.path} is there already"
            file.write_text(self.code, encoding="utf-8")
            return
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        if self.kind == "end":
            lines.append(self.code)
        elif self.kind == "after":
            lines.insert(self.find(lines) + 1, self.code)
        else:
            lines[self.find(lines)] = self.code
        file.write_text("".join(lines), encoding="utf-8")

    def find(self, lines: list[str]) -> int:
        """Return the anchor's line: `...` is anything; neither indent nor comment counts."""
        anchor = re.compile(re.escape(self.anchor).replace(r"\.\.\.", ".*"))
        bare = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
        found = [number for number, line in enumerate(bare) if anchor.fullmatch(line)]
        assert len(found) == 1, f"{self.path} has {len(found)} lines `{self.anchor}`"
        return found[0]


def page_edits() -> list[Edit]:
    """Return the page's edits; shell commands alone need no head."""
    edits = []
    for head, language, code in BLOCK.findall(PAGE):
        if language != "sh":
            matches = {kind: match for kind, h in HEADS.items() if (match := h.fullmatch(head))}
            assert len(matches) == 1, f"where does this go: {head!r}\n{code}"
            ((kind, match),) = matches.items()
            edits.append(Edit(match[1], kind, match[2], code))
    return edits


def page_commands() -> list[str]:
    """Return the shell lines of the page."""
    blocks = [code for _, language, code in BLOCK.findall(PAGE) if language == "sh"]
    return "".join(blocks).splitlines()


# -- a copy of the project -------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A copy of the project's sources; what runs in it takes its code from it."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """Run a command, require that it succeeds and return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**self.environment, "PYTHONPATH": str(self.root), "DVC_NO_ANALYTICS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, *arguments: str) -> str:
        return self.run(sys.executable, *arguments)

    def test(self, *arguments: str) -> dict[str, int]:
        """Run tests and return how many had which outcome."""
        said = self.python("-m", "pytest", "-p", "no:cacheprovider", *arguments)
        counts = re.findall(r"(\d+) (passed|skipped|deselected|xfailed)", said.splitlines()[-1])
        return {outcome: int(count) for count, outcome in counts}


CopyMaker = Callable[[Path, Path], Copy]


@pytest.fixture(scope="session")
def make_copy(environment: dict[str, str]) -> CopyMaker:
    """Return a maker of copies in which the page was followed, with a params file of choice."""

    def make(root: Path, params: Path) -> Copy:
        skip = shutil.ignore_patterns("__pycache__")
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, root / folder, ignore=skip)
        (root / ".dvc").mkdir()
        for file in FILES:
            shutil.copy(ROOT / file, root / file)
        (root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
        shutil.copy(params, root / "params.yaml")
        for edit in page_edits():
            edit.apply(root)
        # The variables of a test run around this one are not for the tests in the copy.
        outer = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
        return Copy(root, outer)

    return make


@pytest.fixture(scope="module")
def copy(make_copy: CopyMaker, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The project after the page, with its own params."""
    return make_copy(tmp_path_factory.mktemp("adding") / "project", ROOT / "params.yaml")


@pytest.fixture(scope="module")
def smoke_copy(make_copy: CopyMaker, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The same with the smoke preset's params, and the page's sizes made as small."""
    preset = ROOT / "pipelines/presets/digits-smoke.yaml"
    made = make_copy(tmp_path_factory.mktemp("adding-smoke") / "project", preset)
    file = made.root / "params.yaml"
    text = file.read_text(encoding="utf-8")
    for edit in page_edits():
        small = edit.code
        for old, new in SMOKE_SIZES.get(edit.anchor.rstrip(":"), {}).items():
            assert old in small
            small = small.replace(old, new)
        text = text.replace(edit.code, small)
    file.write_text(text, encoding="utf-8")
    return made


# -- what the page promises ----------------------------------------------------------------------


def test_the_page_touches_what_a_method_may_touch() -> None:
    """The design's promise: its file, its config class, the registry, one test."""
    assert {edit.path for edit in page_edits()} == {
        "kdci/methods/blobs.py",
        "kdci/config/methods.py",
        "kdci/config/params.py",
        "kdci/substitution/registry.py",
        "kdci/reporting/text/wording.py",
        "tests/kdci/methods/test_blobs.py",
        "params.yaml",
    }


def test_what_runs_in_the_copy_is_the_copys_code(copy: Copy) -> None:
    code = "import kdci, pipelines.cli as cli; print(kdci.__file__, cli.__file__)"
    places = [Path(place) for place in copy.python("-c", code).split()]
    assert len(places) == 2 and all(place.is_relative_to(copy.root) for place in places)


def test_the_methods_own_test_and_the_registrys_pass(copy: Copy) -> None:
    """The registry's: the params block holds what the source takes, all of it and no more."""
    (test,) = [edit for edit in page_edits() if edit.path.startswith("tests/")]
    registry = "tests/kdci/methods/test_registry.py"
    passed = copy.test(test.path, registry, "-k", "blobs")["passed"]
    assert passed == test.code.count("\ndef test_") + 1


def test_kdci_knows_and_accepts_the_method(copy: Copy) -> None:
    assert "blobs" in copy.run("kdci", "list", "methods").splitlines()
    assert "kdci check" in page_commands()
    said = copy.run("kdci", "check")
    assert "1 method" in said and "blobs 200" in said


def test_the_stage_that_the_page_names_is_in_the_dag(copy: Copy) -> None:
    (stage,) = re.findall(r"^dvc repro (\S+)$", "\n".join(page_commands()), re.MULTILINE)
    assert stage in copy.run("dvc", "stage", "list", "--name-only").splitlines()


@pytest.mark.slow
def test_dvc_repro_gives_students_and_a_report(smoke_copy: Copy) -> None:
    root = smoke_copy.root
    assert "dvc repro" in page_commands()
    smoke_copy.run("dvc", "repro")
    rows: list[dict[str, Any]] = json.loads((root / "report/results.json").read_text())
    assert [(row["method"], row["variant"]) for row in rows] == [
        ("blobs", "vanilla"),
        ("blobs", "kdci"),
    ]
    for row in rows:
        assert 0 <= row["accuracy"] <= 100 and row["num_steps"] == 50
    (card,) = root.glob("artifacts/digits-smoke/pools/*/blobs/pool0/card.json")
    facts = json.loads(card.read_text())["facts"]
    assert facts["num_images"] + facts["num_holdout"] == 300
    assert "kdci show" in page_commands()
    assert "Blobs" in smoke_copy.run("kdci", "show")
    # DVC watches the method's file by its name; nothing is left to do.
    assert "kdci/methods/blobs.py" in (root / "dvc.lock").read_text(encoding="utf-8")
    assert json.loads(smoke_copy.run("dvc", "status", "--json")) == {}


@pytest.mark.slow
def test_the_pages_code_is_as_clean_as_the_projects(copy: Copy) -> None:
    files = sorted({edit.path for edit in page_edits() if edit.path.endswith(".py")})
    copy.python("-m", "ruff", "check", *files)
    copy.python("-m", "ruff", "format", "--check", *files)
    copy.python("-m", "mypy", *(file for file in files if not file.startswith("tests/")))
    copy.python(
        *("-m", "pylint", "--disable=all", "--enable=duplicate-code", "--min-similarity-lines=10"),
        "kdci/methods",
    )


@pytest.mark.slow
def test_the_projects_own_rules_hold_with_one_method_more(copy: Copy) -> None:
    tests = (
        "tests/test_architecture.py",
        "tests/test_pipeline.py",
        "tests/kdci/methods/test_registry.py",
    )
    assert copy.test(*tests)["passed"] > 50
