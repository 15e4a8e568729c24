"""docs/adding-a-method.md is followed to the letter: its method comes from an installed package."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.models import PixelModel, build_backbone
from kdci.store.checkpoints import pack, unpack
from kdci.substitution.base import SourceContext
from tests.project_code import ROOT

PAGE = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^(\S[^\n]*)\n\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADS = {
    "complete": re.compile(r"`([^`]+)`, complete:()"),
    "after": re.compile(r"In `([^`]+)`, after `([^`]+)`:"),
    "in place of": re.compile(r"In `([^`]+)`, in place of `([^`]+)`:"),
}
SMOKE_SIZES = {
    "num_images: 5000": "num_images: 300",
    "steps_per_epoch: 40": "steps_per_epoch: 10",
    "batch_size: 64": "batch_size: 32",
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
            file.write_text(self.code, encoding="utf-8")
            return
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        if self.kind == "after":
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


def write_package(folder: Path) -> Path:
    """Write the page's complete files: a package of somebody's."""
    folder.mkdir()
    for edit in page_edits():
        if edit.kind == "complete":
            edit.apply(folder)
    return folder


def test_a_method_is_one_file_and_a_line_that_names_it() -> None:
    assert {edit.path for edit in page_edits()} == {"blobs.py", "pyproject.toml", "params.yaml"}


# -- its method, imported ------------------------------------------------------------------------


SPEC = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 1, True, ("a", "b", "c"))
MakeSource = Callable[..., Any]


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[ModuleType]:
    """The page's file, imported."""
    spec = importlib.util.spec_from_file_location(
        "blobs", write_package(tmp_path / "b") / "blobs.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["blobs"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["blobs"]


@pytest.fixture
def make_source(tmp_path: Path, blobs: ModuleType) -> MakeSource:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = PixelModel(
            build_backbone("wrn-10-1", num_classes=3, channels=1), mean=SPEC.mean, std=SPEC.std
        ).eval()

    def make(folder: str, **params: int) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        bank = ImageBank(tmp_path / folder / "bank.bin", shape=(1, 8, 8))
        context = SourceContext(teacher, SPEC, bank, 7, 0.9, lambda: pytest.fail("no open world"))
        return blobs.Blobs(**params).source(context)

    return make


def pool_of(source: Any) -> Tensor:
    return source.bank.rows(torch.arange(len(source.bank))).float() / 255


def test_images_are_enlarged_noise(make_source: MakeSource) -> None:
    source = make_source("pool", num_images=100, resolution=2, num_candidates=1)
    list(source.prepare())
    images = pool_of(source)
    corners = images[:, :, ::7, ::7]
    enlarged = F.interpolate(corners, size=8, mode="bilinear")
    torch.testing.assert_close(images, enlarged, atol=1.01 / 255, rtol=0)  # bytes are rounded
    assert corners.min() < 0.1 and corners.max() > 0.9 and images.std(dim=0).min() > 0.1


def test_the_surest_of_the_candidates_are_kept(make_source: MakeSource) -> None:
    """The same 200 candidates, once all kept and once a quarter."""
    everything = make_source("all", num_images=200, num_candidates=1)
    quarter = make_source("quarter", num_images=50, num_candidates=4)
    for source in (everything, quarter):
        list(source.prepare())
    kept = {image.numpy().tobytes() for image in pool_of(quarter)}
    images = pool_of(everything)
    with torch.no_grad():
        sureness = torch.softmax(everything.context.teacher(images).logits, 1).amax(1)
    is_kept = torch.tensor([image.numpy().tobytes() in kept for image in images])
    assert len(kept) == int(is_kept.sum()) == 50
    # Images are scored before they are rounded to bytes.
    assert sureness[is_kept].min() > sureness[~is_kept].max() - 1e-3


def test_a_resumed_run_is_the_uninterrupted_one(make_source: MakeSource) -> None:
    whole = make_source("whole", num_images=600)
    assert len(list(whole.prepare())) == whole.num_preparations == 3
    killed = make_source("killed", num_images=600)
    parts = killed.prepare()
    next(parts)
    state = unpack(*pack(killed.state_dict()))  # as a checkpoint holds it
    next(parts)  # lost: the state was saved before
    resumed = make_source("killed", num_images=600)
    resumed.load_state_dict(state)
    list(resumed.prepare())
    assert torch.equal(pool_of(resumed), pool_of(whole))
    for _ in range(3):
        assert torch.equal(resumed.batch(250), whole.batch(250))


def test_the_global_random_stream_is_left_alone(make_source: MakeSource) -> None:
    source = make_source("pool", num_images=20)
    before = torch.get_rng_state()
    list(source.prepare())
    source.batch(10)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_block_tells_what_the_pool_holds(blobs: ModuleType, make_source: MakeSource) -> None:
    source = make_source("pool", num_images=300)
    list(source.prepare())
    assert len(source.bank) == blobs.Blobs(num_images=300).num_pool_images


# -- its method, installed -------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """A folder with params of the page's method, and where the package is installed."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """Run a command, require that it succeeds and return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, *arguments: str) -> str:
        return self.run(sys.executable, *arguments)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Experiment:
    """The page followed: its package installed, its lines in the params of digits-smoke."""
    root = tmp_path_factory.mktemp("adding")
    package, site = write_package(root / "package"), root / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(site), str(package)]
    subprocess.run(pip, check=True, capture_output=True)
    found = Experiment(root, {**environment, "PYTHONPATH": f"{site}:{ROOT}"})
    found.run("kdci", "init", "project", "--preset", "digits-smoke")
    project = root / "project"
    for edit in page_edits():
        if edit.path == "params.yaml":
            small = edit.code
            for old, new in SMOKE_SIZES.items():
                small = small.replace(old, new)
            Edit(edit.path, edit.kind, edit.anchor, small).apply(project)
    return replace(found, root=project)


@pytest.mark.slow
def test_kdci_knows_and_accepts_the_method(experiment: Experiment) -> None:
    assert "pip install ." in page_commands()
    assert {"kdci list methods", "kdci check"} < set(page_commands())
    assert "blobs" in experiment.run("kdci", "list", "methods").splitlines()
    said = experiment.run("kdci", "check")
    assert "1 method" in said and "blobs 50" in said


@pytest.mark.slow
def test_listing_and_titles_load_neither_the_method_nor_torch(experiment: Experiment) -> None:
    code = (
        "import sys; from kdci.substitution.registry import _found, module_of, title_of; "
        "print(title_of('blobs'), module_of('blobs'), _found()['blobs'].summary); "
        "sys.exit([m for m in ('torch', 'blobs') if m in sys.modules] or 0)"
    )
    assert experiment.python("-c", code).startswith("Blobs blobs Blobs (an example, no paper): ")


@pytest.mark.slow
def test_all_commands_work_with_it(experiment: Experiment) -> None:
    """From the estimate to the report: a sweep, a run that finds all in place, the results."""
    estimated = experiment.run("kdci", "check", "--estimate")
    assert re.search(r"^  blobs +\d", estimated, re.MULTILINE) and "not measured" not in estimated
    experiment.run("kdci", "sweep", "--no-track")
    assert " cached" in experiment.run("kdci", "run", "--no-prefect")
    assert "Blobs" in experiment.run("kdci", "show")
    rows = json.loads((experiment.root / "report/results.json").read_text())
    assert {(row["method"], row["variant"]) for row in rows} == {
        ("blobs", arm) for arm in ("vanilla", "kdci")
    }
    assert "Blobs" in (experiment.root / "report/report.md").read_text()


STUDENT = """
from pathlib import Path
from kdci.config.params_file import load_params
from kdci.data.bank.image_bank import ImageBank
from kdci.models.pretrained import build_network
from kdci.substitution.base import SourceContext
from kdci.training.distillation import Distiller

params = load_params(Path("params.yaml"))
spec, rows = params.data.spec, []
teacher = build_network("wrn-10-1", spec, seed=0).eval().requires_grad_(False)
bank = ImageBank(Path("bank.bin"), shape=(spec.channels, spec.image_size, spec.image_size))
source = params.method("blobs").source(SourceContext(teacher, spec, bank, 0, 0.9, None))
list(source.prepare())
sink = type("Sink", (), {"log": lambda self, step, **values: rows.append(values)})()
recipe = params.recipe("blobs")
student = build_network("wrn-10-1", spec, seed=1)
for _ in Distiller(
    teacher=teacher, student=student, source=source, compensation=None, sink=sink,
    **recipe.model_dump(),
).run():
    pass
print(len(bank), len(rows), rows[-1]["kl"] < rows[0]["kl"])
"""


@pytest.mark.slow
def test_a_student_learns_from_its_images(experiment: Experiment) -> None:
    assert experiment.python("-c", STUDENT).split() == ["300", "5", "True"]


@pytest.mark.slow
def test_the_pages_code_is_as_clean_as_the_projects(tmp_path: Path) -> None:
    """As a file of the project's own methods, which it may be just as well."""
    for folder in ("kdci", "stages"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(write_package(tmp_path / "package") / "blobs.py", tmp_path / "kdci/methods")
    file = "kdci/methods/blobs.py"
    for command in (
        ("ruff", "check", file),
        ("ruff", "format", "--check", file),
        ("mypy", file),
        (
            *("pylint", "--disable=all", "--enable=duplicate-code"),
            *("--min-similarity-lines=10", "kdci/methods"),
        ),
    ):
        done = subprocess.run(
            (sys.executable, "-m", *command),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
