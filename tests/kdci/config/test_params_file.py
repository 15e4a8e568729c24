"""params.yaml as users get it wrong: exit code 2, one line a problem, the dotted key, no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdci.config.params_file import MAX_BYTES, load_params, read_yaml
from kdci.errors import CombinedUserError, KdciError, StorageError, UserError
from tests.project_code import ROOT

PRESET = ROOT / "pipelines" / "presets" / "digits-smoke.yaml"
BASE = PRESET.read_text(encoding="utf-8")


def edited(*edits: tuple[str, str]) -> str:
    text = BASE
    for old, new in edits:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


def lines_of(folder: Path, content: str | bytes) -> list[str]:
    file = folder / "params.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        load_params(file)
    assert caught.value.exit_code == 2
    return caught.value.lines()


# What was edited, the key the one line must name, and what it must say.
ONE_PROBLEM = {
    "unknown key": (("num_snapshots:", "num_snapshot:"), "distill.num_snapshot", "num_snapshots"),
    "unknown nested key": (
        ("num_images:", "num_image:"),
        "methods.mosaick.open_world.num_image",
        "did you mean 'num_images'?",
    ),
    "unknown top-level key": (("preset:", "foo: 1\npreset:"), "foo", "one of backbone, budget"),
    "wrong type": (("warmup_calls: 2", "warmup_calls: two"), "methods.fast.warmup_calls", "'two'"),
    "fraction for a count": (("warmup_calls: 2", "warmup_calls: 2.5"), "warmup_calls", "2.5"),
    "text for a number": (("warmup_calls: 2", "warmup_calls: '2'"), "warmup_calls", "integer"),
    "truth for a number": (("warmup_calls: 2", "warmup_calls: true"), "warmup_calls", "True"),
    "out of range": (("warmup_calls: 2", "warmup_calls: 0"), "warmup_calls", "equal to 1, got 0"),
    "NaN": (("scale: shift ", "scale: .nan "), "compensation.scale", "finite"),
    "infinity": (("scale: shift ", "scale: .inf "), "compensation.scale", "finite"),
    "above the largest float": (("scale: shift ", "scale: 1e999 "), "compensation.scale", "finite"),
    "neither number nor N": (("scale: shift ", "scale: M "), "compensation.scale", "'M'"),
    "no is a word": (("name: digits", "name: no"), "data.name", "unknown dataset 'no'"),
    "sexagesimal is a word": (("num_prototypes: 4", "num_prototypes: 1:30"), "num_prot", "'1:30'"),
    "misspelt choice": (("fusion: identity", "fusion: identty"), "compensation.fusion", "identity"),
    "misspelt precision": (("precision: fp32", "precision: fp16"), "runtime.precision", "fp32"),
    "no such device": (("device: auto", "device: gpu"), "runtime.device", "cuda"),
    "path for a name": (("preset: digits-smoke", "preset: ../x"), "preset", "'../x'"),
    "a value twice in a list": (("seeds: [0] ", "seeds: [0, 0] "), "grid.pool_seeds", "twice"),
    "empty list": (("teachers: [wrn-10-1]", "teachers: []"), "grid.teachers", "at least 1"),
    "missing key": (("preset: digits-smoke\n", ""), "preset", "missing"),
    "list for a block": (("num_snapshots: 2", "- 1"), "distill", "[1]"),
    "key that is no text": (("preset:", "3: 4\npreset:"), "3", "keys should be strings"),
    "identity on features": (("space: logits", "space: features"), "compensation.fusion", "F(z)"),
    "path for digits": (("path: null\n  test", "path: x\n  test"), "data.path", "takes no path"),
    "no path": (("name: digits", "name: cifar10"), "data.path", "cifar10 needs the folder"),
    "open world without path": (("photographs", "parquet"), "open_world.path", "needs a path"),
    "all of the training skipped": (
        ("skip_steps: 2", "skip_steps: 8"),
        "methods.dafl.skip_steps",
        "skips all 8 steps",
    ),
    "a memory below a batch": (
        ("memory_size: 32", "memory_size: 15"),
        "methods.cmi.memory_size",
        "a batch of 16",
    ),
    "a warm-up without end": (
        ("  deepinv:\n", "  deepinv:\n    lr_warmup_steps: 2\n"),
        "methods.deepinv.lr_warmup_steps",
        "shorter than the 2 steps",
    ),
    "second document": (("preset: digits-smoke", "preset: digits\n---"), "params.yaml", "another"),
    "duplicate key": (
        ("preset: ", "preset: x\npreset: "),
        "params.yaml",
        "found duplicate",
    ),
    "tab": (("  device: auto", "\tdevice: auto"), "params.yaml", "line 23: found character '\\t'"),
    "alias": (("seeds: [0] ", "seeds: &s [0]\n  x: *s"), "params.yaml", "alias"),
    "tag": (("preset: ", "preset: !!python/object/apply:os.system "), "params.yaml", "line 4: "),
}


@pytest.mark.parametrize("name", ONE_PROBLEM)
def test_names_the_key_on_one_line(tmp_path: Path, name: str) -> None:
    edit, subject, what = ONE_PROBLEM[name]
    lines = lines_of(tmp_path, edited(edit))
    assert len(lines) == 1, lines
    command, level, named, message = lines[0].split(": ", 3)
    assert (command, level) == ("kdci", "error")
    assert subject in named
    assert what in message
    assert message.endswith(")")


# Whole files, and what the one line must say.
WHOLE_FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty"),
    "comments alone": ("# nothing\n", "is empty"),
    "a list": ("- a\n", "is not a mapping"),
    "a word": ("digits\n", "is not a mapping"),
    "another encoding": (BASE.encode("utf-16"), "is not UTF-8 text"),
    "control characters": (b"preset: a\x00b\n", "is not valid YAML"),
    "billion laughs": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "uses a YAML alias",
    ),
    "too large": ("#" * (MAX_BYTES + 1), "1,000,001 bytes"),
    "nested too deeply": ("a: " + "[" * 20 + "]" * 20, "nested too deeply"),  # 21 levels
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_refuses_the_file_on_one_line(tmp_path: Path, name: str) -> None:
    content, what = WHOLE_FILES[name]
    lines = lines_of(tmp_path, content)
    assert len(lines) == 1
    assert lines[0].startswith(f"kdci: error: {tmp_path / 'params.yaml'}: ")
    assert what in lines[0]


def test_reads_a_preset(tmp_path: Path) -> None:
    params = load_params(PRESET)
    assert (params.preset, params.data.name, params.grid.methods) == (
        "digits-smoke",
        "digits",
        ("fast", "dfnd"),
    )


@pytest.mark.parametrize(
    ("written", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("+1", 1.0), ("2", 2.0), ("0x10", 16.0)]
)
def test_numbers_follow_yaml_1_2(tmp_path: Path, written: str, value: float) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(
        edited(("generator_learning_rate: 3e-3", f"generator_learning_rate: {written}"))
    )
    params = load_params(file)
    assert params.methods["fast"].model_dump()["generator_learning_rate"] == value


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_byte_order_mark_and_line_ends_do_not_matter(
    tmp_path: Path, mark: bytes, line_end: bytes
) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(mark + BASE.encode().replace(b"\n", line_end))
    assert load_params(file) == load_params(PRESET)


def test_tells_all_problems_in_one_go(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        edited(
            ("preset: digits-smoke\n", ""),
            ("threads: 1", "threads: 0"),
            ("num_selected: 64", "num_selectd: 64"),
            ("deploy: backbone", "deploy: students"),
        ),
    )
    subjects = {line.split(": ")[2] for line in lines}
    assert subjects == {
        "preset",
        "runtime.threads",
        "methods.mosaick.num_selected",
        "methods.mosaick.num_selectd",
        "evaluate.deploy",
    }
    assert len(lines) == len(subjects)


def test_a_line_break_in_a_key_stays_on_the_line(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, edited(("preset:", '"a\\nkdci: ok": 1\npreset:')))
    assert "\n" not in line


def test_a_missing_file_is_the_users_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kdci preset"):
        load_params(tmp_path / "params.yaml")


def test_an_unreadable_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        load_params(tmp_path)


def test_carries_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(edited(("threads: 1", "threads: 0"), ("num_snapshots: 2", "num_snapshots: 0")))
    with pytest.raises(CombinedUserError) as caught:
        load_params(file)
    assert [problem.subject for problem in caught.value.problems] == [
        "runtime.threads",
        "distill.num_snapshots",
    ]
    assert all(isinstance(problem, KdciError) for problem in caught.value.problems)


def test_validates_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kdci.config.params_file import load_params; "
        f"load_params(Path({str(PRESET)!r}), methods=False); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'sklearn')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0


def test_without_the_methods_blocks_names_are_checked_all_the_same(tmp_path: Path) -> None:
    params = load_params(PRESET, methods=False)
    assert params.methods["fast"] == read_yaml(PRESET)["methods"]["fast"]
    assert params.recipe("fast") == load_params(PRESET).recipe("fast")
    with pytest.raises(TypeError, match=r"methods\.fast was not loaded"):
        params.method("fast")
    file = tmp_path / "params.yaml"
    file.write_text(PRESET.read_text().replace("  fast:", "  fats:"))
    with pytest.raises(CombinedUserError) as caught:
        load_params(file, methods=False)
    assert [problem.subject for problem in caught.value.problems] == [
        "methods.fats",
        "recipes.fats",
    ]
    assert all("did you mean 'fast'?" in problem.fix for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("edit", "subject"),
    [
        (("methods: [fast, dfnd]", "methods: [fats]"), "grid.methods.0"),
        (("teachers: [wrn-10-1]", "teachers: [wrn-10-11]"), "grid.teachers.0"),
        (("  seeds: [0]", "  seeds: [-1]"), "grid.seeds.0"),
    ],
)
def test_an_unusable_item_is_one_problem(
    tmp_path: Path, edit: tuple[str, str], subject: str
) -> None:
    lines = lines_of(tmp_path, edited(edit))
    assert [line.split(": ")[2] for line in lines] == [subject]


def test_a_number_of_thousands_of_digits_is_a_user_error(tmp_path: Path) -> None:
    lines_of(tmp_path, edited(("num_images: 200", "num_images: " + "9" * 5000)))


def test_what_is_done_to_a_tree_does_not_reach_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("grid: {seeds: [0]}\n")
    read_yaml(file)["grid"]["seeds"].append(1)
    assert read_yaml(file) == {"grid": {"seeds": [0]}}


def test_very_deep_nesting_is_refused_at_once(tmp_path: Path) -> None:
    assert "nested too deeply" in lines_of(tmp_path, "[" * 100_000)[0]


def test_lambda_has_one_spelling(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, edited(("  lambda: learned", "  lambda_: learned")))
    assert "compensation.lambda_: unknown key" in line
