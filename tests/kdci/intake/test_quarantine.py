"""A checkpoint read by a process of its own: what comes back, what is refused, what is left."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from kdci.errors import IntegrityError, KdciError, StorageError, UserError
from kdci.intake import quarantine
from kdci.intake.quarantine import read_checkpoint
from kdci.store.hashing import hash_file

TORCH = "{'format': 'torch', 'key': '', 'others': [], 'converted': {}}"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which has to be empty afterwards."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "net.pt"


def refused(kind: type[KdciError], path: Path, scratch: Path, **arguments: str) -> str:
    with pytest.raises(KdciError) as caught:
        read_checkpoint(path, **arguments)
    assert type(caught.value) is kind
    assert list(scratch.iterdir()) == []
    (line,) = caught.value.lines()
    assert line.startswith(f"kdci: error: {path}: ") and line.isprintable()
    assert "weights_only=False" not in line
    return line


def test_tensors_come_back(saved, state, file, scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch is told by the environment, which is not handed on."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file.write_bytes(saved({"state_dict": state, "ema": state}))
    found = read_checkpoint(file, sha256=hash_file(file).upper())
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in state.items())
    assert (found.name, found.sha256) == ("net.pt", hash_file(file))
    assert (found.format, found.key, found.others) == ("torch", "state_dict", ("ema",))
    assert found.num_bytes == file.stat().st_size and found.converted == {}
    assert list(scratch.iterdir()) == []


def test_poisoned_pickle(saved, poisoned, canary, file, scratch) -> None:
    file.write_bytes(saved(poisoned))
    assert "its pickle names posix.system" in refused(IntegrityError, file, scratch)
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(saved, state, file, scratch, value) -> None:
    state["weight"][1, 2] = value
    file.write_bytes(saved(state))
    line = refused(IntegrityError, file, scratch)
    assert "weight holds NaN or infinity in 1 of 12 places" in line


def test_user_errors_come_back_as_such(saved, state, file, scratch) -> None:
    file = file.with_name("-x.pt")  # no option either
    file.write_bytes(saved({"model": state}))
    line = refused(UserError, file, scratch, key="--debug")
    assert "no state dict under --debug, only under model" in line


class TestBeforeTorchIsLoaded:
    """The process ends within a fraction of a second."""

    @pytest.mark.parametrize("damage", ["empty", "cut", "legacy", "flipped", "deflated"])
    def test_damaged(self, saved, rezipped, poisoned, canary, file, scratch, damage) -> None:
        data = saved(poisoned)
        changed = {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "legacy": saved(poisoned, legacy=True),
            "flipped": bytes([data[0] ^ 1]) + data[1:],
            "deflated": rezipped(data, method=zipfile.ZIP_DEFLATED),
        }
        file.write_bytes(changed[damage])
        refused(IntegrityError, file, scratch)
        assert not canary.exists()

    def test_a_bomb_costs_no_memory(self, tmp_path: Path, file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("archive/data.pkl", b"")
            with archive.open("archive/data/0", "w", force_zip64=True) as member:
                for _ in range(64):
                    member.write(bytes(2**24))
        assert file.stat().st_size < 6 * 2**20
        code = (
            "import resource, sys\nfrom pathlib import Path\n"
            "from kdci.errors import IntegrityError\n"
            "from kdci.intake.quarantine import read_checkpoint\n"
            "try: read_checkpoint(Path(sys.argv[1]))\n"
            "except IntegrityError as error: assert 'is compressed' in str(error)\n"
            "else: sys.exit('was read')\n"
            "assert 'torch' not in sys.modules\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
        )
        unit = 1 if sys.platform == "darwin" else 1024
        assert int(told.stdout) * unit < 300e6


class TestWhatIsNoFile:
    def test_missing(self, file, scratch) -> None:
        refused(UserError, file, scratch)

    def test_folder(self, tmp_path, scratch) -> None:
        assert "no regular file" in refused(UserError, tmp_path, scratch)

    def test_link(self, saved, state, file, scratch) -> None:
        link = file.with_name("link.pt")
        file.write_bytes(saved(state))
        link.symlink_to(file)
        assert f"symbolic link to {file}" in refused(UserError, link, scratch)

    def test_pipe_and_device(self, file, scratch) -> None:
        os.mkfifo(file)
        assert "no regular file" in refused(UserError, file, scratch)
        assert "no regular file" in refused(UserError, Path("/dev/zero"), scratch)

    def test_too_large(self, file, scratch) -> None:
        with file.open("wb") as sparse:
            sparse.truncate(quarantine.MAX_FILE_BYTES + 1)
        assert "at most" in refused(IntegrityError, file, scratch)

    def test_another_hash(self, saved, state, file, scratch) -> None:
        file.write_bytes(saved(state))
        line = refused(IntegrityError, file, scratch, sha256="0" * 64)
        assert f"has SHA-256 {hash_file(file)}" in line

    def test_unreadable(self, saved, state, file, scratch) -> None:
        file.write_bytes(saved(state))
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("nothing is unreadable for this user")
        refused(StorageError, file, scratch)


class TestAProcessGoneBad:
    """Nothing that it leaves is believed."""

    @pytest.fixture
    def impostor(self, saved, state, file, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """Return a function that has other code run in the place of the reading process."""
        file.write_bytes(saved(state))

        def replace(code: str) -> None:
            script = tmp_path / "impostor"
            script.write_text(f"#!{sys.executable}\n{code}\n")
            script.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(script))

        return replace

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            ("", "ended by exit code 0"),
            ("import os; os.kill(os.getpid(), 11)", "ended by signal SIGSEGV"),
            ("import sys; sys.exit('Boom \\x1b[31m')", "ended by exit code 1: Boom ?[31m"),
            ("open('report.json', 'w').write('[' * 9)", "ended by exit code 0"),
            ("open('report.json', 'w').write(' ' * 2**21)", "ended by exit code 0"),
            ("import os; os.symlink('/etc/passwd', 'report.json')", "ended by exit code 0"),
            ("import json; json.dump({'error': 'SystemExit'}, open('report.json', 'w'))", "ended"),
            (f"import json; json.dump({TORCH}, open('report.json', 'w'))", "left no tensors"),
            (
                f"import json, os; json.dump({TORCH}, open('report.json', 'w'));"
                "os.symlink('/etc/passwd', 'tensors.safetensors')",
                "left no tensors",
            ),
            (
                f"import json; json.dump({TORCH}, open('report.json', 'w'));"
                "open('tensors.safetensors', 'w').write('x' * 99)",
                "not a whole safetensors file",
            ),
        ],
    )
    def test_is_told(self, impostor, file, scratch, code, told) -> None:
        impostor(code)
        assert told in refused(IntegrityError, file, scratch)

    def test_that_hangs(self, impostor, file, scratch, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quarantine, "WALL_SECONDS", 0.3)
        impostor("import time; time.sleep(60)")
        assert "was not read within" in refused(IntegrityError, file, scratch)

    def test_sees_no_secrets(
        self, impostor, file, scratch, tmp_path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
        seen = tmp_path / "seen.json"
        impostor(f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w'))")
        refused(IntegrityError, file, scratch)
        environment = json.loads(seen.read_text())
        assert "secret" not in environment.values()
        assert environment["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"

    def test_works_in_a_private_folder(self, impostor, file, scratch, tmp_path) -> None:
        seen = tmp_path / "mode"
        impostor(f"import os; open({str(seen)!r}, 'w').write(str(os.stat('.').st_mode))")
        refused(IntegrityError, file, scratch)
        assert stat.S_IMODE(int(seen.read_text())) == 0o700


def test_limits_hold() -> None:
    """In a process of its own: they are for good."""
    code = (
        "import resource\nfrom kdci.intake.limits import limit_process, memory_for\n"
        "limit_process()\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
        "assert resource.getrlimit(resource.RLIMIT_CPU)[1] <= 600\n"
        "with memory_for(2**20):\n"
        "    try: bytearray(2**30)\n"
        "    except MemoryError: print('denied')\n"
        "bytearray(2**30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ("denied\n" if sys.platform.startswith("linux") else "")
