"""docs/cluster.md, every block in order: two Ray nodes, PostgreSQL, MLflow, Prefect, DVC remote."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests.pipelines._cluster import (
    FILE,
    Block,
    Listener,
    Machine,
    PostgresTools,
    Replacements,
    Watch,
    read_blocks,
)
from tests.pipelines._servers import free_port
from tests.project_code import ROOT, copy_code, renew_cells_of

PAGE = ROOT / "docs/cluster.md"
MACHINES = ("database", "prefect", "mlflow", "head", "worker", "runner", "other")
PORTS = ("5432", "4200", "5000", "6379")
HEAD, WORKER = "127.0.0.2", "127.0.0.3"  # both this machine, and not the address that all else uses
FOREGROUND = {
    "prefect server start": "Check out the dashboard",
    "mlflow server": "Application startup complete",
    "ray start": "This command will now block forever",
}
"""Commands that stay, and what they say when they are ready."""
ENDS_WITH = {"worker": signal.SIGINT, "head": signal.SIGTERM, "mlflow": signal.SIGTERM}
"""How each is ended; the others by Ctrl-C."""
STAGES = 7
"""Teacher, pool, dictionary, two students, their evaluation, report: as params.yaml is cut down."""
WITHOUT_RESULTS = "at a commit without the results"


# -- the page ------------------------------------------------------------------------------------


def test_a_block_without_a_machine_is_an_error():
    with pytest.raises(AssertionError, match="line 2: the block names no machine"):
        read_blocks("text\n```\nray start --head\n```\n")


def test_blocks_are_read_with_continued_lines_joined():
    blocks = read_blocks("```\n# head: stays\na \\\n  b\n\nc\n```\n\n```\n# file ~/x\ny\n```\n")
    assert blocks == [
        Block(1, "head", "stays", ("a    b", "c")),
        Block(9, FILE, "~/x", ("y",)),
    ]


@pytest.mark.parametrize(
    ("command", "stranger"),
    [
        ("ray start --node-ip-address=OTHER_IP", "OTHER_IP"),
        ("ray start --port=6380", "6380"),
        ("psql --host 10.1.2.3", "10.1.2.3"),
        ("dvc remote add store /srv/dvc", "/srv/dvc"),
        ("mlflow server --artifacts-destination=/srv/x", "/srv/x"),
        ("export A=/shared/x", "/shared/x"),
    ],
)
def test_what_is_left_to_choose_is_an_error(command, stranger):
    with pytest.raises(AssertionError, match="unknown here"):
        Replacements({"HEAD_IP": HEAD}, Path("/tmp/x"))(command)


def test_what_the_page_leaves_open_is_replaced():
    replace = Replacements(
        {"6379": "4711", "/srv": "/tmp/x/srv", "A_IP": "127.0.0.2"}, Path("/tmp/x")
    )
    assert replace("x --at=A_IP:6379 --to /srv/y") == "x --at=127.0.0.2:4711 --to /tmp/x/srv/y"
    assert replace("x --at=A_IP") == "x --at=127.0.0.2"
    assert not replace.unused
    assert Replacements({"6379": "1"}, Path("/tmp/x")).unused == {"6379"}


def replacements(root: Path, ports: dict[str, int], repository: str, password: str) -> Replacements:
    """Return what the page leaves to choose, chosen."""
    values = {
        "HEAD_IP": HEAD,
        "WORKER_IP": WORKER,
        "PASSWORD": password,
        "REPOSITORY": repository,
        "--num-cpus=16": "--num-cpus=1",
        "/shared": str(root / "shared"),
        "/srv": str(root / "srv"),
    }
    return Replacements({**values, **{port: str(own) for port, own in ports.items()}}, root)


def test_every_block_of_the_page_can_be_run():
    """Known in seconds, without running it."""
    ports = {port: 40000 + number for number, port in enumerate(PORTS)}
    replace = replacements(Path("/tmp/x"), ports, "/tmp/x/origin.git", "0a" * 16)
    blocks = read_blocks(PAGE.read_text())
    assert {block.machine for block in blocks} == {*MACHINES, FILE}
    assert [replace(line) for block in blocks for line in block.lines]
    assert not replace.unused
    assert WITHOUT_RESULTS in {block.note for block in blocks}


# -- the site ------------------------------------------------------------------------------------


@dataclass
class Site:
    """What the page builds, standing.

    Attributes:
        root: The folder that holds everything.
        machines: By the names that the page gives them.
        watch: Sees their processes.
        token: The file of Ray's token.
        said: By command as the page has it: what it said, once for each time.
    """

    root: Path
    machines: dict[str, Machine]
    watch: Watch
    token: Path
    ports: dict[str, int]
    password: str
    said: dict[str, list[str]] = field(default_factory=dict)

    @property
    def workspace(self) -> Path:
        return self.root / "shared/kdci"

    @property
    def clone(self) -> Path:
        return self.root / "home-other/kdci"

    def output(self, command: str, time: int = -1) -> str:
        return next(said for text, said in self.said.items() if text.startswith(command))[time]

    def query(self, database: str, query: str) -> list[tuple]:
        import psycopg2

        link = psycopg2.connect(
            host="127.0.0.1",
            port=self.ports["5432"],
            dbname=database,
            user="kdci",
            password=self.password,
        )
        try:
            with link.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        finally:
            link.close()


def postgres_tools() -> PostgresTools:
    """Return PostgreSQL's programs, or skip and say why."""
    candidates = [Path(found).parent for found in [shutil.which("initdb")] if found]
    if shutil.which("pg_config"):
        told = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
        candidates.append(Path(told.stdout.strip()))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    needed = ("initdb", "postgres", "createuser", "createdb")
    for folder in candidates:
        if all((folder / name).exists() for name in needed):
            break
    else:
        pytest.skip(f"PostgreSQL's {', '.join(needed)} are not installed")
    told = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True)
    if told.returncode == 0 and not Path(told.stdout.strip(), "extension/pg_trgm.control").exists():
        pytest.skip("PostgreSQL's contrib modules (pg_trgm) are not installed")
    return PostgresTools(folder, _unprivileged() if os.geteuid() == 0 else None)


def _unprivileged() -> str:
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def start_postgres(tools: PostgresTools, root: Path, port: int) -> subprocess.Popen[bytes]:
    """Start PostgreSQL on loopback; its superuser needs no password at the socket in its folder."""
    folder = root / "postgres"
    folder.mkdir()
    if tools.user is not None:
        shutil.chown(folder, tools.user)
    make = ["-D", str(folder / "data"), "-U", "postgres", "-N", "-E", "UTF8", "--locale=C"]
    make += ["--auth-local=trust", "--auth-host=scram-sha-256"]
    told = {"cwd": folder, "user": tools.user, "stdin": subprocess.DEVNULL}
    made = subprocess.run(tools.call("initdb", *make), capture_output=True, text=True, **told)
    assert made.returncode == 0, made.stderr
    options = ["-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
    options += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with (root / "postgres.log").open("wb") as log:
        server = subprocess.Popen(
            tools.call("postgres", *options),
            stdout=log,
            stderr=log,
            start_new_session=True,
            **told,
        )
    deadline = time.monotonic() + 60
    while b"ready to accept connections" not in (root / "postgres.log").read_bytes():
        assert server.poll() is None, (root / "postgres.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return server


def make_repository(root: Path, environment: dict[str, str]) -> Path:
    """Make the bare repository of a tiny experiment, and clone it to where all nodes see it."""
    seed, origin = root / "seed", root / "origin.git"
    copy_code(seed)
    for file in (".gitignore", ".dvc/.gitignore"):
        shutil.copy(ROOT / file, seed / file)
    yaml = YAML()
    params = yaml.load((ROOT / "pipelines/presets/digits-smoke.yaml").read_text())
    params["grid"]["methods"] = ["fast"]
    with (seed / "params.yaml").open("w") as out:
        yaml.dump(params, out)
    renew_cells_of(seed)
    for command in (
        ["git", "init", "--quiet", "--initial-branch=main", str(seed)],
        ["git", "-C", str(seed), "add", "--all"],
        ["git", "-C", str(seed), "commit", "--quiet", "--message", "The experiment"],
        ["git", "clone", "--quiet", "--bare", str(seed), str(origin)],
        ["git", "clone", "--quiet", str(origin), str(root / "shared/kdci")],
    ):
        subprocess.run(command, env=environment, check=True)
    return origin


def plain_environment(root: Path) -> dict[str, str]:
    """Return an environment without the settings of any tool; its `python` is this one."""
    tools = (
        "RAY_",
        "PREFECT_",
        "MLFLOW_",
        "DVC_",
        "GIT_",
        "PG",
        "TUNE_",
        "KDCI_",
        "OMP_",
        "PYTHON",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tools)}
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_NAME": "Somebody" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "somebody@example.com" for who in ("AUTHOR", "COMMITTER")},
        "HOME": str(root / "home-head"),
    }


def make_machines(
    root: Path, environment: dict[str, str], tools: PostgresTools, ports: dict[str, int]
) -> dict[str, Machine]:
    logs, shared = root / "logs", root / "shared/kdci"
    logs.mkdir()
    code = {"PYTHONPATH": str(shared)}
    variables = {
        "database": {
            "PATH": os.pathsep.join([environment["PATH"], str(tools.folder)]),
            "PGHOST": str(root / "postgres"),
            "PGPORT": str(ports["5432"]),
            "PGUSER": "postgres",
        },
        "prefect": {},
        "mlflow": {},
        "head": {"RAY_TMPDIR": str(root), **code},
        "worker": {"RAY_TMPDIR": str(root), "HOME": str(root / "home-worker"), **code},
        "runner": code,
        "other": {
            "HOME": str(root / "home-other"),
            "PYTHONPATH": str(root / "home-other/kdci"),
        },
    }
    assert tuple(variables) == MACHINES
    return {
        name: Machine({**environment, **own}, Path({**environment, **own}["HOME"]), logs)
        for name, own in variables.items()
    }


def play(site: Site, replace: Replacements) -> None:
    """Do what the page says."""
    for block in read_blocks(PAGE.read_text()):
        if block.machine == FILE:
            file = Path(replace(block.note.replace("~", str(site.root / "home-head"))))
            file.write_text("".join(f"{replace(line)}\n" for line in block.lines))
            continue
        assert block.machine in site.machines, f"line {block.line}: no machine {block.machine}"
        machine = site.machines[block.machine]
        if block.note == WITHOUT_RESULTS:
            machine.run("git checkout --quiet HEAD~1")
            machine.run("rm -r artifacts .dvc/cache .dvc/tmp .kdci")
            assert not (site.clone / "dvc.lock").exists()
        for line in block.lines:
            command = replace(line)
            ready = next((says for start, says in FOREGROUND.items() if line.startswith(start)), "")
            if ready:
                machine.stay(command, ready)
            else:
                typed = f"{site.password}\n" * 2 if line.startswith("createuser") else ""
                site.said.setdefault(line, []).append(machine.run(command, typed=typed))
    assert not replace.unused, f"the page no longer has {replace.unused}"


@pytest.fixture
def site() -> Iterator[Site]:
    """Everything that the page builds, built as it says."""
    if sys.platform != "linux":
        pytest.skip("the two nodes have loopback addresses of their own, which only Linux has")
    tools = postgres_tools()
    # Not below tmp_path: PostgreSQL's user has to reach it, and Ray's sockets want a short path.
    root = Path(tempfile.mkdtemp(prefix="kdci-cl-", dir="/tmp"))
    root.chmod(0o755)
    (root / "shared").mkdir()
    ports = {port: free_port() for port in PORTS}
    environment = plain_environment(root)
    origin = make_repository(root, environment)
    password, token = secrets.token_hex(16), root / "shared/ray-token"
    replace = replacements(root, ports, str(origin), password)
    machines = make_machines(root, environment, tools, ports)
    database = start_postgres(tools, root, ports["5432"])
    watch = Watch(machines)
    try:
        built = Site(root, machines, watch, token, ports, password)
        play(built, replace)
        yield built
    finally:
        for machine in reversed(machines.values()):
            machine.kill()
        watch.end()
        database.send_signal(signal.SIGINT)
        database.wait(30)
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_does_what_it_says(site):
    """One test, since building the site takes minutes and its last part takes it down."""
    check_sweep(site)
    check_databases(site)
    check_other_machine(site)
    check_token(site)
    check_end(site)
    check_listeners(site.watch.listeners)
    check_secrets(site)


def check_sweep(site: Site) -> None:
    """Both nodes ran trials, and DVC finds nothing left to do."""
    assert site.output("ray status").count("node_") == 2
    assert "Ray: 2 nodes" in site.output("kdci sweep")
    assert f": {STAGES} completed\n" in site.output("kdci sweep")
    assert re.findall(r"^(\S+):$", site.output("dvc status"), re.MULTILINE) == ["cells"]
    assert re.findall(r"Running stage '(\S+)'", site.output("dvc repro")) == ["cells"]
    lines = (site.workspace / ".kdci/journal.jsonl").read_text().splitlines()
    links = [row["links"] for row in map(json.loads, lines) if row["runner"] == "ray"]
    assert len(links) == 5 and len({link["ray.node_id"] for link in links}) == 2


def check_databases(site: Site) -> None:
    """The record is in PostgreSQL, whole before `kdci sync`."""
    tags = "SELECT count(*) FROM tags WHERE key = 'kdci.run' AND value = 'cell'"
    assert site.query("mlflow", tags) == [(2,)]
    status = "SELECT status, count(*) FROM runs WHERE lifecycle_stage = 'active' GROUP BY status"
    (finished,) = site.query("mlflow", status)
    assert finished[0] == "FINISHED" and finished[1] >= 2 + STAGES
    assert "0 runs and 0 points added" in site.output("kdci sync")
    assert list((site.root / "srv/mlflow").rglob("card.json")), "no artifacts behind the server"
    flows = "SELECT name, state_type, state_name FROM flow_run"
    assert site.query("prefect", flows) == [("digits-smoke", "COMPLETED", "Cached")]
    tasks = "SELECT state_name, count(*) FROM task_run GROUP BY state_name"
    assert site.query("prefect", tasks) == [("Cached", STAGES)]


def check_other_machine(site: Site) -> None:
    """Results that came by git and DVC are up to date; those that came by DVC alone restored."""
    runs = [*site.said["kdci run"], *site.said["kdci run --no-prefect --no-track"]]
    assert [f"{STAGES} stages: {STAGES} cached" in said for said in runs] == [True] * 3, runs
    said = site.output("dvc repro --pull")
    assert len(re.findall(r"Stage '\S+' is cached - skipping run", said)) == STAGES - 1, said
    assert re.findall(r"Running stage '(\S+)'", said) == ["cells", "report"], said
    assert contents(site.clone) == contents(site.workspace) != {}


def contents(root: Path) -> dict[str, str]:
    """Return the content hash of each artifact."""
    cards = sorted((root / "artifacts").rglob("card.json"))
    return {str(card.relative_to(root)): json.loads(card.read_text())["content"] for card in cards}


def check_token(site: Site) -> None:
    """Without the cluster's token nobody is let in, neither a client nor a node."""
    address = f"{HEAD}:{site.ports['6379']}"
    assert site.token.stat().st_mode & 0o077 == 0
    assert (site.root / "home-head/.ray/auth_token").stat().st_mode & 0o077 == 0
    stranger = Machine(
        plain_environment(site.root), site.root / "home-stranger", site.root / "logs"
    )
    stranger.run(f"export HOME={site.root}/home-stranger PYTHONPATH={site.workspace}")
    client = f"import ray; ray.init(address='{address}'); print('let in')"
    for variables in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"):
        said = stranger.run(f'{variables} timeout 60 python -c "{client}"', fails=True)
        assert "let in" not in said and re.search("[Uu]nauth|[Aa]uthentication", said), said
    join = f"timeout 60 ray start --address={address} --node-ip-address=127.0.0.4 --num-cpus=1"
    said = stranger.run(f"RAY_AUTH_MODE=disabled {join} --block", fails=True)
    assert "Ray runtime started" not in said, said
    stranger.run(
        f"git clone --quiet {site.root}/origin.git new && cd new && git checkout -q HEAD~1"
    )
    said = stranger.run(f"kdci sweep --address={address}", fails=True)
    assert f"is needed to join the cluster at {address}" in said, said


def check_end(site: Site) -> None:
    """A signal ends each server and each node, with nothing left behind."""
    for name in ("worker", "head", "mlflow", "prefect"):
        codes = site.machines[name].stop(ENDS_WITH.get(name, signal.SIGINT))
        assert len(codes) == 1, name
    site.watch.end()
    _, left = psutil.wait_procs(site.watch.seen, timeout=10)
    assert not left, [process.cmdline() for process in left]
    assert len(site.watch.seen) > 30


def check_listeners(listeners: set[Listener]) -> None:
    """Only Ray's own processes listen beyond loopback; a stage listens nowhere."""
    machines = {one.machine for one in listeners}
    assert machines == {"prefect", "mlflow", "head", "worker", "runner"}
    for one in listeners:
        assert "stages." not in one.process, one
        rays = one.machine in ("head", "worker") or "kdci sweep" in one.process
        assert rays or one.ip == "127.0.0.1", one


def check_secrets(site: Site) -> None:
    """Password and token are in no log, no output, no command line, no result."""
    token = site.token.read_text().strip()
    texts = [*site.watch.command_lines, *(one for said in site.said.values() for one in said)]
    kept = [*(site.root / "logs").iterdir(), site.root / "postgres.log"]
    kept += [file for file in site.workspace.rglob("*") if ".git" not in file.parts]
    contents = [file.read_bytes() for file in kept if file.is_file() and file.suffix != ".state"]
    contents += [text.encode() for text in texts]
    assert len(token) == 64 and len(contents) > 100
    for secret in (site.password, token):
        assert not [text[:200] for text in contents if secret.encode() in text]
