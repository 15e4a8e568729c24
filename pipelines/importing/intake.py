"""A checkpoint is read in quarantine, fitted, tried, scored, and written as an artifact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.config.catalog import DatasetSpec, facts_of_spec
from kdci.graph.code import Code, Sources
from kdci.store.artifacts import new_artifact, read_card, remove_leftovers
from kdci.store.hashing import hash_json
from kdci.store.revision import code_revision
from pipelines.importing.options import Options, folder_of, require_names, spec_of

if TYPE_CHECKING:
    from kdci.intake.fitting import Fitted
    from kdci.intake.quarantine import Checkpoint
    from kdci.intake.sanity import NoiseAnswers
    from kdci.models import PixelModel
    from kdci.training.runtime import Runtime

_CODE = Code("import-teacher", ("pipelines.importing.intake",))


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint.

    Attributes:
        folder: Of the teacher.
        content: Its content hash.
        checkpoint: What the file held.
        fitted: How it fits the backbone.
        noise: How the teacher answers to noise.
        accuracy: On the test split in percent; None: there is no data.
        num_test: Images of the test split.
    """

    folder: Path
    content: str
    checkpoint: Checkpoint
    fitted: Fitted
    noise: NoiseAnswers
    accuracy: float | None
    num_test: int


def import_teacher(options: Options) -> Imported:
    """Import a checkpoint; nothing is written unless every check passes.

    Args:
        options: What is asked for.

    Raises:
        UserError: Options, file, architecture or data do not fit.
        IntegrityError: The file is damaged, altered, or holds more than tensors.
        NumericError: The teacher's answers are not finite.
        StorageError: The disk is full, or a place can not be read or written.
    """
    require_names(options)
    spec, folder = spec_of(options), folder_of(options)
    from kdci.intake.quarantine import read_checkpoint

    checkpoint = read_checkpoint(options.file, key=options.key, sha256=options.sha256)
    from kdci.intake.fitting import fit_state_dict
    from kdci.intake.sanity import answers_to_noise
    from kdci.training.runtime import start

    subject = str(options.file)
    fitted = fit_state_dict(
        checkpoint.tensors,
        subject,
        backbone=options.backbone,
        spec=spec,
        stem=options.stem,
        num_classes=options.wanted_classes,
    )
    model = _model(options.backbone, fitted)
    noise = answers_to_noise(model, fitted.spec, subject)
    runtime = start(device="auto", threads="auto", precision="fp32")
    accuracy, num_test = None, 0
    if options.data is not None or fitted.spec.bundled:
        accuracy, num_test = _accuracy(model, fitted.spec, options.data, runtime)
    facts = _facts(options, checkpoint, fitted, accuracy)
    content = _write(folder, options, model, facts, runtime)
    return Imported(folder, content, checkpoint, fitted, noise, accuracy, num_test)


def _model(backbone: str, fitted: Fitted) -> PixelModel:
    from kdci.models import load_state
    from kdci.models.pretrained import build_network

    model = build_network(backbone, fitted.spec, seed=0, stem=fitted.stem)
    load_state(model.backbone, fitted.tensors)
    return model.eval().requires_grad_(requires_grad=False)


def _accuracy(
    model: PixelModel, spec: DatasetSpec, path: Path | None, runtime: Runtime
) -> tuple[float, int]:
    from kdci.data.datasets.loading import load_split
    from kdci.training.evaluation import PREDICTION_BATCH, match_percentage, predict_classes

    data = load_split(spec, path=path, split="test")
    model = model.to(runtime.device)
    predicted = predict_classes(
        lambda images: model(images).logits,
        data.images,
        batch_size=PREDICTION_BATCH,
        device=runtime.device,
    )
    return match_percentage(predicted, data.labels), len(data.labels)


def _facts(
    options: Options, checkpoint: Checkpoint, fitted: Fitted, accuracy: float | None
) -> dict[str, Any]:
    """Return the card's facts: those of a trained teacher, and where this one came from."""
    names = fitted.spec.class_names if options.class_names else ()
    return {
        "backbone": options.backbone,
        "stem": fitted.stem,
        **facts_of_spec(replace(fitted.spec, stated_names=names)),
        "num_steps": 0,
        "train_accuracy": None,
        "accuracy": accuracy,
        "imported": {
            "file": checkpoint.name,
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.num_bytes,
            "format": checkpoint.format,
            "key": checkpoint.key,
            "prefixes": list(fitted.prefixes),
            "renamed": fitted.renamed,
            "converted": checkpoint.converted,
            "num_batch_norm": fitted.num_batch_norm,
            "had_running_stats": fitted.num_batch_norm > 0,
        },
    }


def _write(
    folder: Path, options: Options, model: PixelModel, facts: dict[str, Any], runtime: Runtime
) -> str:
    from kdci.models.pretrained import MODEL_FILE
    from kdci.training.runtime import versions

    params = {"data": {"name": options.dataset}}
    card = {
        "stage": "import-teacher",
        "params": params,
        "params_hash": hash_json(params),
        "code": {"revision": code_revision(), "hash": Sources().fingerprint(_CODE)},
        "seeds": {},
        "parents": {},
        "versions": versions(),
        "runtime": runtime.card(),
        "reproducible": True,
        "facts": facts,
    }
    remove_leftovers(folder)
    with new_artifact(folder, kind="teacher", card=card) as draft:
        draft.save_tensors(MODEL_FILE, model.state_dict())
    return str(read_card(folder, kind="teacher")["content"])
