"""What an artifact's card has to say before the artifact may be taken for a stage's result.

Params, the parents' contents and the code: what made an artifact must be what is there now.
Nothing else is ever recorded, and nothing else spares a stage its run.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.errors import KdciError, StorageError
from kdci.store.artifacts import open_artifact, read_card
from kdci.store.layout import Layout
from pipelines.graph.plan import PlannedStage, kind_of_role, planned_stages


@dataclass(frozen=True)
class Expected:
    """The result that a stage would have if it ran now.

    Attributes:
        identity: The stage's own name, which locks and work folders have.
        kind: What it makes.
        artifact: Where that lies.
        params: The blocks it depends on, by dotted key.
        parents: Where what it is made from lies, by role.
        code: Hash of the sources.
    """

    identity: str
    kind: str
    artifact: Path
    params: dict[str, Any]
    parents: dict[str, Path]
    code: str

    def difference(self) -> str | None:
        """Return why what is in place is not this result; None: it is, with every byte.

        All files are hashed again if the card says the right things.
        """
        try:
            differing = self._misstated()
            if differing is None:
                open_artifact(self.artifact, kind=self.kind)
            return differing
        except (KdciError, OSError) as error:
            return " ".join(str(error).split())

    def _misstated(self) -> str | None:
        card = read_card(self.artifact, kind=self.kind)
        parents = {role: _content(path, role) for role, path in self.parents.items()}
        stated = {
            "params": (card.get("params"), self.params),
            "parents": (card.get("parents"), parents),
            "code": (card.get("code", {}).get("hash"), self.code),
        }
        differing = [name for name, (there, wanted) in stated.items() if there != wanted]
        return f"was made with other {' and '.join(differing)}" if differing else None


def _content(path: Path, role: str) -> str:
    return str(read_card(path, kind=kind_of_role(role))["content"])


def read_expected(root: Path) -> tuple[Params, dict[str, Expected]]:
    """Return the params as they are now, and by artifact what each stage would make of them.

    Args:
        root: The project folder.

    Returns:
        The params, and the expected results by path relative to ``root``. Evaluations, which
        are made of any number of students, and the report are left out.

    Raises:
        UserError: The params are not valid.
    """
    params = load_params(root / "params.yaml")
    code = code_hash(root)
    planned = planned_stages(params, Layout(root, params.preset))
    made = [stage for stage in planned if stage.kind != "evaluation"]
    return params, {
        stage.artifact.relative_to(root).as_posix(): _expected(stage, code) for stage in made
    }


def _expected(stage: PlannedStage, code: str) -> Expected:
    return Expected(stage.name, stage.kind, stage.artifact, stage.params, dict(stage.parents), code)


def code_hash(root: Path) -> str:
    """Return the hash of the sources that a stage run in ``root`` has.

    Asked of a process: the folder's own copy comes before the installed one.

    Raises:
        StorageError: Python can not be run there.
    """
    ask = "from stages._provenance import code_hash; import sys; sys.stdout.write(code_hash())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", ask], cwd=root, capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        what = (error.stderr.strip().splitlines() or ["no word"])[-1]
        raise StorageError(str(root), f"stages can not be run here: {what}", "mend it") from None
    return done.stdout
