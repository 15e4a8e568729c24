"""Which setting of the compensation is the default: the candidates, on the digits pools.

Run from the project folder, after `dvc repro` on the `digits` preset:

    python studies/compensation_default.py --seeds 5 --out studies/compensation_default.jsonl

Each line of the output is one student: method, candidate, seed, accuracy of the backbone and of
the compensated student on the test split at the last step. A rerun goes on where the last one
ended. `--table` prints mean paired differences to vanilla with standard errors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from kdci.artifacts import Artifact, open_artifact
from kdci.checkpoints import load_state
from kdci.compensation import Compensation
from kdci.config import Params
from kdci.confounder import build_dictionary, predict
from kdci.data.datasets import load_split
from kdci.data.image_bank import ImageBank, open_npy
from kdci.distillation import Distiller
from kdci.evaluation import image_batches, match_percentage, predict_classes
from kdci.layout import Layout
from kdci.params_file import load_params
from kdci.pretrained import build_network, load_teacher
from kdci.runtime import derive_seed
from kdci.substitution.base import SourceContext
from kdci.substitution.registry import build_source

CANDIDATES: dict[str, dict[str, Any] | None] = {
    "vanilla": None,
    "identity-logits": {"space": "logits", "fusion": "identity", "scale": 1.0},
    "identity-logits-scale-N": {"space": "logits", "fusion": "identity", "scale": "N"},
    "identity-logits-scale-3-centred": {
        "space": "logits",
        "fusion": "identity",
        "scale": 3.0,
        "proportions": "centred",
    },
    "residual-logits-scale-N": {"space": "logits", "fusion": "residual", "scale": "N"},
    "residual-features-scale-N": {"space": "features", "fusion": "residual", "scale": "N"},
    "residual-features-scale-N-centred": {
        "space": "features",
        "fusion": "residual",
        "scale": "N",
        "proportions": "centred",
    },
}


class Silent:
    """Metrics of the studies' students are their end points alone."""

    def log(self, step: int, **values: float) -> None:
        """Take no note."""


class Bench:
    """Distils students in one process on the artifacts of an experiment."""

    def __init__(self, params: Params, layout: Layout, method: str) -> None:
        self.params = params
        self.method = method
        self.spec = params.data.spec
        teacher_name = params.grid.teachers[0]
        self.teacher_artifact = open_artifact(layout.teacher(teacher_name), kind="teacher")
        self.teacher = load_teacher(self.teacher_artifact, self.spec)
        pool_seed = params.grid.pool_seeds[0]
        self.pool: Artifact = open_artifact(
            layout.pool(teacher_name, method, pool_seed), kind="pool"
        )
        self.pool_seed = pool_seed
        path = Path(params.data.path) if params.data.path else None
        self.test = load_split(self.spec.name, path=path, split="test")

    def compensation(self, candidate: dict[str, Any], seed: int) -> Compensation:
        """Build the candidate's dictionary and module."""
        options = dict(candidate)
        space = options.pop("space")
        images = torch.from_numpy(open_npy(self.pool.file("images.npy")).copy())
        predictions, _ = predict(self.teacher, image_batches(images, batch_size=512), space=space)
        dictionary = build_dictionary(
            predictions,
            num_prototypes=options.pop("num_prototypes", self.params.dictionary.num_prototypes),
            seed=derive_seed(self.pool_seed, "dictionary"),
        )
        return Compensation(
            dictionary.prototypes_ND,
            dictionary.proportions_N,
            num_classes=self.spec.num_classes,
            seed=derive_seed(seed, "compensation"),
            **options,
        )

    def distil(self, candidate: dict[str, Any] | None, student_seed: int) -> dict[str, float]:
        """Distil one student and score it on the test split."""
        seed = derive_seed(student_seed, self.pool_seed, "distill")
        recipe = self.params.recipe(self.method)
        with tempfile.TemporaryDirectory() as folder:
            shape = (self.spec.channels, self.spec.image_size, self.spec.image_size)
            bank = ImageBank(
                Path(folder) / "bank.bin", shape=shape, base=self.pool.file("images.npy")
            )
            context = SourceContext(
                teacher=self.teacher,
                spec=self.spec,
                bank=bank,
                seed=derive_seed(seed, "source"),
                teacher_accuracy=min(self.teacher_artifact.facts["accuracy"] / 100, 0.999),
                open_world=lambda: torch.empty(0),
            )
            source = build_source(self.method, self.params.method(self.method), context)
            source.load_state_dict(load_state(self.pool.path / "source"))
            source.reseed(context.seed)
            student = build_network(
                self.params.grid.students[0], self.spec, seed=derive_seed(seed, "student")
            )
            compensation = None if candidate is None else self.compensation(candidate, seed)
            distiller = Distiller(
                teacher=self.teacher,
                student=student,
                source=source,
                compensation=compensation,
                sink=Silent(),
                **recipe.model_dump(),
            )
            for _ in distiller.run():
                pass
        return self._score(student, compensation)

    def _score(self, student: Any, compensation: Compensation | None) -> dict[str, float]:
        student.eval()
        images, labels = self.test.images, self.test.labels

        def raw(batch: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = student(batch).logits
            return logits

        scores = {
            "backbone": match_percentage(predict_classes(raw, images, batch_size=512), labels)
        }
        if compensation is not None:
            module = compensation.eval()
            predicted = predict_classes(lambda b: module(raw(b)), images, batch_size=512)
            scores["compensated"] = match_percentage(predicted, labels)
        return scores


def run(params: Params, layout: Layout, arguments: argparse.Namespace) -> None:
    """Distil what the output file does not hold yet."""
    done = {(r["method"], r["candidate"], r["seed"]) for r in read(arguments.out)}
    for method in arguments.methods or params.grid.methods:
        bench = Bench(params, layout, method)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            for name in arguments.candidates or CANDIDATES:
                if (method, name, seed) in done:
                    continue
                scores = bench.distil(CANDIDATES[name], seed)
                row = {"method": method, "candidate": name, "seed": seed, **scores}
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                sys.stderr.write(f"{row}\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows done so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Return mean accuracies, and paired differences to vanilla with standard errors."""
    vanilla = {(r["method"], r["seed"]): r["backbone"] for r in rows if r["candidate"] == "vanilla"}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if (row["method"], row["seed"]) in vanilla:
            groups[row["method"], row["candidate"]].append(row)
    lines = [
        "| method | setting | n | backbone | backbone - vanilla | compensated - vanilla |",
        "|---|---|---|---|---|---|",
    ]
    for (method, name), group in groups.items():
        cells = [f"{mean(r['backbone'] for r in group):.1f}"]
        for score in ("backbone", "compensated"):
            differences = [r[score] - vanilla[method, r["seed"]] for r in group if score in r]
            cells.append(_with_error(differences) if name != "vanilla" else "")
        lines.append(f"| {method} | {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_error(values: list[float]) -> str:
    error = f" +- {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{mean(values):+.1f}{error}"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("studies/compensation_default.jsonl"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--candidates", nargs="*", choices=list(CANDIDATES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(arguments.threads)
        params = load_params(arguments.params)
        layout = Layout(arguments.params.resolve().parent, params.preset)
        run(params, layout, arguments)
    sys.stdout.write(table(read(arguments.out)) + "\n")


if __name__ == "__main__":
    main()
