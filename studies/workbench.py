"""Distils students in one process, on the pools of an experiment: what the studies are made with.

Students here are those of the pipeline (same seeds, same loop, same stages before them), without a
process, an artifact and a checkpoint each.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdci.config.params import Params
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.mapped_images import open_npy, save_npy
from kdci.data.datasets.loading import load_split
from kdci.deconfounding.compensation import Compensation
from kdci.deconfounding.confounder import ConfounderDictionary, build_dictionary, predict
from kdci.deconfounding.known_shift import degrade_chunks, resample_rows
from kdci.deconfounding.logit_adjustment import LogitAdjustment, log_prior
from kdci.deconfounding.rebuilding import DictionaryRebuilder
from kdci.deconfounding.strata import class_strata, drawn_proportions, prototype_strata
from kdci.models.pretrained import build_network, load_teacher
from kdci.store.artifacts import Artifact, open_artifact
from kdci.store.checkpoints import load_state
from kdci.store.layout import Layout
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.training.distillation import Distiller
from kdci.training.evaluation import image_batches, predict_logits
from kdci.training.runtime import Runtime, derive_seed

_BATCH = 512


@dataclass(frozen=True)
class Setting:
    """How a student is de-confounded; every value differs from the paper's KDCI only as it says.

    Attributes:
        compensate: Whether phi is used at all.
        space: Of the dictionary.
        num_prototypes: N.
        options: Further arguments of ``Compensation``.
        rate: The module's learning rate over the student's.
        rebuild: Growth of the pool at which the dictionary is built anew; null: never.
        strata: `classes` or `prototypes`: batches drawn evenly over them.
        max_repeats: Cap of the draw.
        drawn: Whether P(z) is taken of what is drawn instead of the pool.
        tau: Logit adjustment in the place of phi.
    """

    compensate: bool = False
    space: Any = "logits"
    num_prototypes: int = 10
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    rebuild: float | None = None
    strata: str | None = None
    max_repeats: float = math.inf
    drawn: bool = False
    tau: float | None = None


@dataclass(frozen=True)
class Shift:
    """A shift that is built into a method's pool; see ``kdci.deconfounding.known_shift``."""

    num_images: int
    imbalance: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    contrast: float = 1.0


class Silent:
    """Metrics of the studies' students are their end points alone."""

    def log(self, step: int, **values: float) -> None:
        """Take no note."""


class Workbench:
    """Distils on one pool of an experiment.

    Args:
        params: The experiment's.
        layout: Where its teacher and pools lie.
        method: Whose pool.
        pool_seed: Which pool.
        runtime: Device and precision.
        shift: Built into the pool, which then stays as it is; None: the method's own source.
    """

    def __init__(
        self,
        params: Params,
        layout: Layout,
        *,
        method: str,
        pool_seed: int,
        runtime: Runtime,
        shift: Shift | None = None,
    ) -> None:
        self.params, self.method, self.pool_seed, self.shift = params, method, pool_seed, shift
        self.runtime = runtime
        self.spec = params.data.spec
        name = params.grid.teachers[0]
        self.teacher_artifact = open_artifact(layout.teacher(name), kind="teacher")
        self.teacher = load_teacher(
            self.teacher_artifact,
            self.spec,
            device=runtime.device,
            autocast_dtype=runtime.format.autocast_dtype,
        )
        self.pool: Artifact = open_artifact(layout.pool(name, method, pool_seed), kind="pool")
        path = layout.root / params.data.path if params.data.path else None
        self.test = load_split(self.spec, path=path, split="test")
        self._folder = tempfile.TemporaryDirectory()
        self.images_file = self._images_file()
        self.images = torch.from_numpy(open_npy(self.images_file).copy())
        self._predictions: dict[str, tuple[Tensor, Tensor]] = {}

    def _images_file(self) -> Path:
        own = self.pool.file("images.npy")
        if self.shift is None:
            return own
        classes = self.pool.tensors("predictions.safetensors")["logits"].argmax(dim=1)
        rows = resample_rows(
            classes,
            num_images=self.shift.num_images,
            num_classes=self.spec.num_classes,
            imbalance=self.shift.imbalance,
            seed=derive_seed(self.pool_seed, "shift"),
        )
        (images,) = degrade_chunks(
            [torch.from_numpy(open_npy(own)[rows.numpy()])],
            blur=self.shift.blur,
            noise=self.shift.noise,
            contrast=self.shift.contrast,
            seed=derive_seed(self.pool_seed, "shift", "noise"),
        )
        file = Path(self._folder.name) / "shifted.npy"
        save_npy(images, file)
        return file

    def predictions(self, space: Any) -> tuple[Tensor, Tensor]:
        """Return the teacher's predictions on the pool, and their classes."""
        if space not in self._predictions:
            batches = image_batches(self.images, batch_size=_BATCH, device=self.runtime.device)
            self._predictions[space] = predict(self.teacher, batches, space=space)
        return self._predictions[space]

    def dictionary(self, setting: Setting) -> ConfounderDictionary:
        """Return the pool's dictionary, as the dictionary stage builds it."""
        return build_dictionary(
            self.predictions(setting.space)[0],
            num_prototypes=setting.num_prototypes,
            seed=derive_seed(self.pool_seed, "dictionary"),
        )

    def distil(self, setting: Setting, student_seed: int) -> dict[str, float]:
        """Distil one student and score it on the test split at the last step."""
        seed = derive_seed(student_seed, self.pool_seed, "distill")
        recipe = self.params.recipe(self.method)
        with tempfile.TemporaryDirectory() as folder:
            source = self._source(Path(folder), seed)
            self._stratify(source, setting)
            student = build_network(
                self.params.grid.students[0],
                self.spec,
                seed=derive_seed(seed, "student"),
                device=self.runtime.device,
                autocast_dtype=self.runtime.format.autocast_dtype,
            )
            module = self._module(setting, seed)
            distiller = Distiller(
                teacher=self.teacher,
                student=student,
                source=source,
                compensation=module.to(self.runtime.device) if module is not None else None,
                sink=Silent(),
                compensation_learning_rate=setting.rate * recipe.learning_rate,
                rebuilder=self._rebuilder(setting, module, source),
                **recipe.model_dump(),
            )
            for _ in distiller.run():
                pass
        return self._score(student, module)

    def _source(self, folder: Path, seed: int) -> BankSource:
        shape = (self.spec.channels, self.spec.image_size, self.spec.image_size)
        bank = ImageBank(folder / "bank.bin", shape=shape, base=self.images_file)
        context = SourceContext(
            teacher=self.teacher,
            spec=self.spec,
            bank=bank,
            seed=derive_seed(seed, "source"),
            teacher_accuracy=min(self.teacher_artifact.facts["accuracy"] / 100, 0.999),
            open_world=lambda: torch.empty(0),
        )
        block = self.params.method(self.method)
        if self.shift is not None:
            return BankSource(context, block)
        source = block.source(context)
        source.load_state_dict(load_state(self.pool.path / "source"))
        source.reseed(context.seed)
        return source

    def _stratify(self, source: BankSource, setting: Setting) -> None:
        if setting.strata == "classes":
            source.stratify(class_strata(self.teacher), max_repeats=setting.max_repeats)
        elif setting.strata == "prototypes":
            dictionary = self.dictionary(setting)
            strata = prototype_strata(self.teacher, dictionary.prototypes_ND, space=setting.space)
            source.stratify(strata, max_repeats=setting.max_repeats)

    def _module(self, setting: Setting, seed: int) -> Compensation | LogitAdjustment | None:
        if setting.tau is not None:
            prior = log_prior(self.predictions("logits")[1], self.spec.num_classes)
            return LogitAdjustment(prior, tau=setting.tau)
        if not setting.compensate:
            return None
        dictionary = self.dictionary(setting)
        proportions_N = dictionary.proportions_N
        if setting.drawn:
            assert setting.strata == "classes" and dictionary.assignments_M is not None
            proportions_N = drawn_proportions(
                dictionary.assignments_M,
                self.predictions("logits")[1],
                max_repeats=setting.max_repeats,
            )
        return Compensation(
            dictionary.prototypes_ND,
            proportions_N,
            num_classes=self.spec.num_classes,
            seed=derive_seed(seed, "compensation"),
            **setting.options,
        )

    def _rebuilder(
        self, setting: Setting, module: Any, source: BankSource
    ) -> DictionaryRebuilder | None:
        if setting.rebuild is None:
            return None
        return DictionaryRebuilder(
            teacher=self.teacher,
            bank=source.bank,
            space=setting.space,
            num_prototypes=setting.num_prototypes,
            growth=setting.rebuild,
            prototypes_ND=module.prototypes_ND,
            seed=derive_seed(self.pool_seed, "dictionary"),
        )

    def _score(self, student: Any, module: Any) -> dict[str, float]:
        student.eval()
        logits = predict_logits(
            lambda batch: student(batch).logits,
            self.test.images,
            batch_size=_BATCH,
            device=self.runtime.device,
        )
        scores = {"backbone": self._accuracy(logits)}
        if isinstance(module, Compensation):
            with torch.no_grad():
                compensated = module.eval()(logits.to(self.runtime.device)).cpu()
            scores["compensated"] = self._accuracy(compensated)
        return scores

    def _accuracy(self, logits: Tensor) -> float:
        return round(100 * float((logits.argmax(dim=1) == self.test.labels).double().mean()), 3)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows done so far; a line torn by a kill is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def plain(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a dataclass that are not their default, as JSON knows them."""
    default = asdict(type(value)(**({"num_images": 0} if isinstance(value, Shift) else {})))
    for name, known in asdict(value).items():
        if known != default[name]:
            yield name, known
