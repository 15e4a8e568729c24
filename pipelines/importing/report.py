"""What `kdci import-teacher` prints: what was found, how it fits, and what to write in params."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdci.config.catalog import CUSTOM, DATASETS
from kdci.intake.sanity import is_at_chance
from pipelines.importing.intake import Imported
from pipelines.importing.options import Options

_FEW_CLASSES = 99.0
"""Share in percent of one class among the answers to noise that is worth a look."""


def report_lines(options: Options, imported: Imported) -> list[str]:
    """Return the report, one fact a line."""
    found, fitted, spec = imported.checkpoint, imported.fitted, imported.fitted.spec
    where = f"its {found.key}" if found.key else "the whole file"
    source = f", told by the {fitted.stem_source}" if fitted.stem_source else ""
    noise = imported.noise
    measured = (
        "not measured: give --data"
        if imported.accuracy is None
        else f"{imported.accuracy:.2f} % of {imported.num_test:,} test images"
    )
    lines = [
        f"file: {found.name}, {found.num_bytes:,} bytes, {found.format}, sha256 {found.sha256}",
        f"state dict: {where}, {len(found.tensors)} tensors{_changes(imported)}",
        f"backbone: {options.backbone}, stem {fitted.stem}{source}",
        f"images: {spec.num_classes} classes, {spec.channels} x {spec.image_size} x "
        f"{spec.image_size}, mean {list(spec.mean)}, std {list(spec.std)}",
        f"BatchNorm: {fitted.num_batch_norm} layers with running statistics",
        f"noise: {noise.num_images} images fall into {noise.num_classes} classes, "
        f"{noise.largest_share:.0f} % into one",
        f"accuracy: {measured}",
        f"teacher: {_shown(imported.folder, options.root)}, content {imported.content}",
    ]
    place = _shown(imported.folder, options.root)
    quoted = shlex.quote(place)
    hint = f"  # or `kdci preset own-teacher --teacher {quoted}`, which writes them"
    return [*lines, "", "params.yaml:", *_params(options, imported), hint]


def _changes(imported: Imported) -> str:
    found, fitted = imported.checkpoint, imported.fitted
    parts = []
    if fitted.prefixes:
        parts.append(f"prefix {''.join(fitted.prefixes)} taken off")
    if fitted.renamed:
        parts.append(f"{fitted.renamed} renamed")
    if fitted.left_out:
        parts.append(f"{fitted.left_out} of auxiliary heads left out")
    parts += [f"{count} of {name} made float32" for name, count in found.converted.items()]
    return "".join(f", {part}" for part in parts)


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def in_yaml(text: str) -> str:
    """Return text as YAML reads it back: as it is where that is plain, else quoted."""
    plain = re.fullmatch(r"[A-Za-z0-9_./][\w./+-]*", text, re.ASCII)
    is_text = any(part.isalpha() for part in text) and "/" in text
    return text if plain and is_text else json.dumps(text, ensure_ascii=True)


def _params(options: Options, imported: Imported) -> Iterator[str]:
    """Yield what has to stand in params.yaml for the teacher to be adopted."""
    spec = imported.fitted.spec
    yield from (
        "  grid:",
        f"    teachers: [{options.backbone}]",
        "  data:",
        f"    name: {spec.name}",
    )
    if options.data is not None:
        given = options.data
        path = str(given) if given.is_absolute() else os.path.relpath(given, options.root)
        yield f"    path: {in_yaml(path)}"
    elif not spec.bundled:
        yield "    test: null"
    if spec.name == CUSTOM:
        yield "    facts:"
        facts: dict[str, Any] = {
            "num_classes": spec.num_classes,
            "image_size": spec.image_size,
            "channels": spec.channels,
            "mean": list(spec.mean),
            "std": list(spec.std),
        }
        if spec.stated_names:
            facts["class_names"] = json.dumps(spec.stated_names, ensure_ascii=False)
        yield from (f"      {key}: {value}" for key, value in facts.items())
    yield from (
        "  teacher:",
        f"    artifact: {in_yaml(_shown(imported.folder, options.root))}",
        f"    content: {imported.content}",
    )


def warnings(options: Options, imported: Imported) -> Iterator[str]:
    """Yield what is lawful but likely not what was meant, a line each."""
    found, fitted, spec = imported.checkpoint, imported.fitted, imported.fitted.spec
    if found.others:
        yield f"{found.name} also holds {', '.join(found.others)}: --key chooses"
    if fitted.num_batch_norm == 0:
        yield f"{options.backbone} has no BatchNorm, which deepinv, fast and cmi need"
    elif fitted.untouched:
        yield (
            f"{fitted.untouched} of {fitted.num_batch_norm} BatchNorm layers have the statistics "
            "of a network that was never trained"
        )
    known = DATASETS.get(options.dataset, spec)
    if (spec.mean, spec.std) != (known.mean, known.std):
        yield f"the catalog normalises {options.dataset} otherwise; the teacher keeps its own"
    accuracy = imported.accuracy
    if accuracy is None and imported.noise.largest_share > _FEW_CLASSES:
        yield "all noise falls into one class: check --mean, --std and the backbone"
    if accuracy is not None and is_at_chance(
        accuracy, num_classes=spec.num_classes, num_images=imported.num_test
    ):
        yield (
            f"the accuracy, {accuracy:.2f} %, is at chance for {spec.num_classes} classes: check "
            "--mean, --std, the order of the classes and the data"
        )
