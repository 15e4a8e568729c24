"""What `kdci import-teacher` is asked for: the dataset's facts and the place of the result."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdci.config.block import NAME_PATTERN
from kdci.config.catalog import BACKBONE_NAMES, CUSTOM, DATASETS, STEMS, DatasetSpec, is_backbone
from kdci.config.data import DataFacts
from kdci.errors import CombinedUserError, UserError
from kdci.store.artifacts import read_card

OWN_SCALE = ("torchvision-googlenet", "torchvision-inception_v3")
"""torchvision's weights of these renormalise what they are given (`transform_input`), to a mean
and a deviation of 0.5: nothing in the file says so, nor is it done here."""
_SUFFIX = re.compile(r"(\.(pth|pt|tar|ckpt|bin|safetensors|th))+$", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """The command's options, told in ``pipelines.commands.imports``; None: not given.

    Attributes:
        root: The project folder, or where the command runs.
    """

    file: Path
    backbone: str
    dataset: str
    root: Path
    num_classes: int | None = None
    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] = ()
    stem: str = "auto"
    to: Path | None = None
    sha256: str | None = None
    data: Path | None = None
    key: str | None = None
    force: bool = False

    @property
    def wanted_classes(self) -> int | None:
        """K as far as it is stated: by the catalog, by a number, by names."""
        if self.dataset != CUSTOM:
            return DATASETS[self.dataset].num_classes
        if self.num_classes is not None:
            return self.num_classes
        return len(self.class_names) or None


def require_names(options: Options) -> None:
    """Check the names among the options before anything is read.

    Raises:
        UserError: A backbone, dataset, stem or hash that does not exist.
    """
    if not is_backbone(options.backbone):
        names = ", ".join([*BACKBONE_NAMES, "torchvision-NAME", "timm-NAME"])
        raise UserError("--backbone", f"unknown backbone {options.backbone!r}", f"one of {names}")
    if options.dataset not in (*DATASETS, CUSTOM):
        names = ", ".join([*DATASETS, CUSTOM])
        raise UserError("--dataset", f"unknown dataset {options.dataset!r}", f"one of {names}")
    if options.stem not in ("auto", *STEMS):
        names = ", ".join(["auto", *STEMS])
        raise UserError("--stem", f"unknown stem {options.stem!r}", f"one of {names}")
    if not all(options.class_names):
        raise UserError("--class-names", "one of them is empty", "write cat,dog,ship")
    if options.sha256 is not None and not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", options.sha256):
        raise UserError("--sha256", "is no SHA-256", "give its 64 hexadecimal digits")


def spec_of(options: Options) -> DatasetSpec:
    """Return the dataset's facts; the classes of a custom one may still be to be told.

    Raises:
        UserError: A fact is missing, is one that the catalog knows, or is on another scale; or
            the backbone's own checkpoints may have another normalisation than the catalog's.
        CombinedUserError: Facts are out of range or do not fit one another.
    """
    if options.dataset == CUSTOM:
        return _custom(options)
    known = DATASETS[options.dataset]
    for option, value in (
        ("--classes", options.num_classes),
        ("--image-size", options.image_size),
        ("--channels", options.channels),
        ("--class-names", options.class_names),
    ):
        if value is not None and value != ():
            what = f"is a fact of custom data; {known.name}'s is known"
            raise UserError(option, what, "leave it out, or give --dataset custom")
    _require_stated_normalisation(options)
    facts = _validated(
        num_classes=known.num_classes,
        image_size=known.image_size,
        channels=known.channels,
        mean=options.mean or known.mean,
        std=options.std or known.std,
    )
    return replace(known, mean=facts.mean, std=facts.std)


def _require_stated_normalisation(options: Options) -> None:
    """Have the user say what networks with a published normalisation of their own were given."""
    if options.backbone in OWN_SCALE and (options.mean is None or options.std is None):
        half = ",".join(["0.5"] * DATASETS[options.dataset].channels)
        what = f"have to be stated for {options.backbone}, whose published weights have 0.5"
        fix = f"--mean {half} --std {half} for those; else what it was trained with"
        raise UserError("--mean, --std", what, fix)


def _custom(options: Options) -> DatasetSpec:
    needed = {"--image-size": options.image_size, "--mean": options.mean, "--std": options.std}
    missing = [option for option, value in needed.items() if value is None]
    if missing:
        what = "custom data needs the facts its teacher was trained with"
        raise UserError(", ".join(missing), what, "for example --image-size 32 --mean 0.5,0.5,0.5")
    assert options.mean is not None
    facts = _validated(
        num_classes=2 if options.wanted_classes is None else options.wanted_classes,  # 2: a guess
        image_size=options.image_size,
        channels=len(options.mean) if options.channels is None else options.channels,
        mean=options.mean,
        std=options.std,
        class_names=options.class_names,
    )
    return facts.spec


def _validated(**facts: Any) -> DataFacts:
    """Return the facts, each in its range and all fitting one another."""
    for option, values in (("--mean", facts["mean"]), ("--std", facts["std"])):
        if not all(0 <= value <= 1 for value in values):
            what = f"is {', '.join(f'{value:g}' for value in values)}, which is not within 0 to 1"
            fix = "give it on the scale where black is 0 and white is 1: divide by 255"
            raise UserError(option, what, fix)
    try:
        return DataFacts.model_validate(facts)
    except ValidationError as error:
        problems: dict[str, UserError] = {}  # the first of each option: others follow from it
        for problem in error.errors():
            key = problem.get("ctx", {}).get("key") or (problem["loc"] or ("facts",))[0]
            option = "--" + {"num_classes": "classes"}.get(str(key), str(key)).replace("_", "-")
            what = problem["msg"]
            problems.setdefault(option, UserError(option, what[0].lower() + what[1:]))
        raise CombinedUserError(list(problems.values())) from None


def folder_of(options: Options) -> Path:
    """Return where the teacher is going to lie.

    Raises:
        UserError: The name is not fit for a folder, or something is there already.
        IntegrityError: A teacher that is there is damaged.
    """
    name = options.to.name if options.to else _SUFFIX.sub("", options.file.name)
    if not re.fullmatch(NAME_PATTERN, name):
        what = f"{name!r} is no name for a teacher"
        raise UserError("--to", what, "letters, digits, dots, - and _, at most 64, no dot first")
    folder = options.to.absolute() if options.to else options.root / "teachers" / name
    if folder.exists() or folder.is_symlink():
        if not options.force:
            fix = "give --to another folder, or --force to replace it"
            raise UserError(str(folder), "is there already", fix)
        read_card(folder, kind="teacher")  # nothing but a teacher is ever replaced
    return folder
