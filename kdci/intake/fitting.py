"""A foreign state dict fitted to a backbone: names, stem, classes, channels, BatchNorm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from kdci.config.catalog import STEMS, DatasetSpec, stem_for
from kdci.errors import IntegrityError, UserError
from kdci.intake.naming import Naming, match_names
from kdci.models import WITH_STEMS, outline_backbone

_SHOWN = 3
_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var", _COUNTER)
AUXILIARY = {"googlenet": (".aux1.", ".aux2."), "inception_v3": (".AuxLogits.",)}
"""Modules of auxiliary classifiers, by the network's name in torchvision and in timm."""
SAVE_WHOLE = "save the state dict of the network as it was trained"


@dataclass(frozen=True)
class Fitted:
    """A state dict that is the backbone's.

    Attributes:
        tensors: Of the backbone, by the names it has here.
        spec: The dataset's facts, with the classes that the weights have.
        stem: First layers of the backbone.
        stem_source: What it is told by: `weights` or `image size`; "" where it was given, or
            the backbone has no choice.
        prefixes: What was taken from the start of every name.
        renamed: How many names were spelt otherwise.
        num_batch_norm: BatchNorm layers, all with running statistics.
        untouched: How many of them have the statistics of a network never trained.
        left_out: Tensors of auxiliary classifiers, which networks here do not have.
    """

    tensors: dict[str, Tensor]
    spec: DatasetSpec
    stem: str
    stem_source: str
    prefixes: tuple[str, ...]
    renamed: int
    num_batch_norm: int
    untouched: int
    left_out: int = 0


def fit_state_dict(
    tensors: Mapping[str, Tensor],
    subject: str,
    *,
    backbone: str,
    spec: DatasetSpec,
    stem: str = "auto",
    num_classes: int | None = None,
) -> Fitted:
    """Fit foreign tensors to a backbone.

    Args:
        tensors: By foreign name, finite.
        subject: The file, for messages.
        backbone: Name of the backbone.
        spec: Facts of the dataset the teacher was trained on; classes may be others.
        stem: `cifar`, `imagenet`, or `auto`: told from the weights, else from the image size.
        num_classes: K that the teacher has to have; None: told from its last layer.

    Raises:
        UserError: The tensors are those of another architecture, of other classes or images, or
            lack BatchNorm statistics.
        IntegrityError: A running variance is negative.
    """
    network = outline_backbone(backbone, spec, stem=STEMS[0])
    outline = network.state_dict()
    norms = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    tensors, left_out = _without_auxiliary(tensors, backbone)
    naming = match_names(tensors, outline)
    _require_names(naming, norms, subject, backbone)
    own = {
        place: _typed(tensors[name], outline[place].dtype) for name, place in naming.targets.items()
    }
    for name in naming.missing:  # the counters alone, which no prediction depends on
        own[name] = torch.zeros(outline[name].shape, dtype=torch.int64)
    _require_channels(own, subject, backbone, spec)
    spec = _with_classes(own, subject, backbone, spec, num_classes)
    chosen, source = _stem(own, subject, backbone, spec, stem)
    return Fitted(
        tensors=own,
        spec=spec,
        stem=chosen,
        stem_source=source,
        prefixes=naming.prefixes,
        renamed=naming.renamed,
        num_batch_norm=len(norms),
        untouched=_untouched(own, norms, subject),
        left_out=left_out,
    )


def _without_auxiliary(
    tensors: Mapping[str, Tensor], backbone: str
) -> tuple[dict[str, Tensor], int]:
    """Leave out classifiers that answer from within a network, which only training has."""
    heads = AUXILIARY.get(backbone.partition("-")[2], ())
    kept = {
        name: tensor for name, tensor in tensors.items() if not any(h in f".{name}" for h in heads)
    }
    return kept, len(tensors) - len(kept)


def _require_names(naming: Naming, norms: Sequence[str], subject: str, backbone: str) -> None:
    missing = [name for name in naming.missing if not name.endswith(_COUNTER)]
    if not missing and not naming.left_over:
        return
    if not naming.left_over and all(name.endswith(_STATISTICS) for name in missing):
        what = f"has no BatchNorm statistics: {_few(missing)} missing"
        fix = (
            "save it with track_running_stats=True: without them a prediction depends on its "
            "batch, and deepinv, fast and cmi have nothing to match"
        )
        raise UserError(subject, what, fix)
    expected = {*naming.missing, *naming.targets.values()}
    of_norms = {name for name in expected if name.rpartition(".")[0] in norms}
    if of_norms and of_norms == set(naming.missing):
        what = f"has no BatchNorm layer, {backbone} has {len(norms)}: folded, or none there"
        fix = f"{SAVE_WHOLE}, before its BatchNorm is fused into convolutions"
        raise UserError(subject, what, fix)
    parts = [
        f"{len(names)} {word} ({_few(names)})"
        for names, word in ((missing, "missing"), (naming.left_over, "unknown"))
        if names
    ]
    what = f"its tensors are not those of {backbone}: {', '.join(parts)}"
    raise UserError(subject, what, "choose its --backbone, see `kdci list backbones`")


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    more = f", and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _require_channels(
    own: Mapping[str, Tensor], subject: str, backbone: str, spec: DatasetSpec
) -> None:
    def outline(count: int) -> DatasetSpec:
        return replace(spec, channels=count, mean=(0.5,) * count, std=(0.5,) * count)

    found = _size_along(own, backbone, outline(1), outline(3))
    if found is not None and found[1] != spec.channels:
        what = f"takes images of {found[1]} channels ({found[0]}), expected {spec.channels}"
        raise UserError(subject, what, "choose the dataset it was trained on, or its --mean")


def _with_classes(
    own: Mapping[str, Tensor],
    subject: str,
    backbone: str,
    spec: DatasetSpec,
    num_classes: int | None,
) -> DatasetSpec:
    """Return the facts with the classes of the last layer, compared with those asked for."""
    found = _size_along(own, backbone, replace(spec, num_classes=2), replace(spec, num_classes=3))
    if found is None:
        return spec
    head, count = found
    if num_classes is not None and count != num_classes:
        what = f"has {count} classes ({head}), expected {num_classes}"
        raise UserError(subject, what, "choose the dataset it was trained on, or mend --classes")
    if count == spec.num_classes:
        return spec
    return replace(spec, num_classes=count, stated_names=())


def _size_along(
    own: Mapping[str, Tensor], backbone: str, first: DatasetSpec, second: DatasetSpec
) -> tuple[str, int] | None:
    """Return the tensor whose shape tells two datasets apart, and its size along that axis."""
    try:
        one, other = (
            outline_backbone(backbone, spec, stem=STEMS[0]).state_dict() for spec in (first, second)
        )
    except UserError:  # a network that does not come in both
        return None
    for name, tensor in one.items():
        for axis, sizes in enumerate(zip(tensor.shape, other[name].shape, strict=True)):
            if sizes[0] != sizes[1] and own[name].ndim == tensor.ndim:
                return name, int(own[name].shape[axis])
    return None


def _stem(
    own: Mapping[str, Tensor], subject: str, backbone: str, spec: DatasetSpec, stem: str
) -> tuple[str, str]:
    """Return the stem whose shapes the tensors have, and how it is known."""
    wrong = {
        name: _misfits(own, outline_backbone(backbone, spec, stem=name).state_dict())
        for name in (STEMS if stem == "auto" else (stem,))
    }
    fitting = [name for name, misfits in wrong.items() if not misfits]
    if not fitting:
        fewest = min(wrong.values(), key=len)
        more = f", and {len(fewest) - 1} more" if len(fewest) > 1 else ""
        given = f" with the {stem} stem" if stem != "auto" else ""
        what = f"its tensors are not those of {backbone}{given}: {fewest[0]}{more}"
        raise UserError(subject, what, "choose its --backbone and --stem")
    if len(fitting) == 1:
        return fitting[0], "weights" if stem == "auto" else ""
    return stem_for(stem, spec.image_size), "image size" if backbone in WITH_STEMS else ""


def _misfits(own: Mapping[str, Tensor], outline: Mapping[str, Tensor]) -> list[str]:
    """Return what differs in shape or type, in words."""
    shapes = [
        f"{name} is {tuple(own[name].shape)}, expected {tuple(expected.shape)}"
        for name, expected in outline.items()
        if own[name].shape != expected.shape
    ]
    types = [
        f"{name} is {own[name].dtype}, expected {expected.dtype}".replace("torch.", "")
        for name, expected in outline.items()
        if own[name].dtype != expected.dtype
    ]
    return shapes + types


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return counters and indices in the type they have here; weights are not cast."""
    return tensor if dtype.is_floating_point else tensor.to(dtype)


def _untouched(own: Mapping[str, Tensor], norms: Iterable[str], subject: str) -> int:
    """Count BatchNorm layers with initial statistics; refuse impossible ones."""
    count = 0
    for norm in norms:
        mean, variance = own.get(f"{norm}.running_mean"), own.get(f"{norm}.running_var")
        if mean is None or variance is None:
            continue
        if bool((variance < 0).any()):
            what = f"{norm}.running_var is negative"
            raise IntegrityError(subject, what, "fetch it again")
        count += bool((mean == 0).all() and (variance == 1).all())
    return count
