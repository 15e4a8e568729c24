"""Losses that several methods share, and the instruments that take readings for them.

Shape legend: B batch, K classes, C channels of a feature map, L BatchNorm layers.
All divergences and entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdci.errors import UserError

# The axes of (B, C, H, W) that BatchNorm takes its statistics over.
_BATCH_AND_SPACE = (0, 2, 3)


def soft_label_kl(
    student_logits_BK: Tensor, teacher_logits_BK: Tensor, temperature: float
) -> Tensor:
    """Return T^2 KL(p_T || p_S), both softened by T, summed over classes, mean over the batch.

    The factor T^2 keeps the gradient's size about the same at every temperature
    (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2).

    Args:
        student_logits_BK: Student logits, (B, K).
        teacher_logits_BK: Teacher logits, (B, K); no gradient flows into them.
        temperature: T > 0; dimensionless.
    """
    student = F.log_softmax(student_logits_BK / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits_BK.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def one_hot_costs(logits_BK: Tensor) -> Tensor:
    """Return -log max softmax for every row: cross-entropy to the row's own argmax, (B,).

    The mean is DAFL's one-hot loss (Chen et al., ICCV 2019); the value itself is DFND's
    selection score (Chen et al., CVPR 2021).
    """
    return -F.log_softmax(logits_BK, dim=1).amax(dim=1)


def disagreement(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> Tensor:
    """Return the decision-adversarial loss: the lower, the more the two nets disagree.

    -mean_i 1[argmax S_i = argmax T_i] KL(p_T,i || p_S,i): only images that both put in the
    same class count, so that an image is never pushed over the teacher's decision border
    for nothing. Gradient flows through both (CMI: Fang et al., IJCAI 2021).

    Args:
        student_logits_BK: Student logits, (B, K).
        teacher_logits_BK: Teacher logits, (B, K).
    """
    agree_B = student_logits_BK.argmax(dim=1) == teacher_logits_BK.argmax(dim=1)
    divergence_B = F.kl_div(
        F.log_softmax(student_logits_BK, dim=1),
        F.log_softmax(teacher_logits_BK, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
    return -(divergence_B * agree_B).mean()


def bn_statistics_loss(
    means_LC: Sequence[Tensor],
    variances_LC: Sequence[Tensor],
    running_means_LC: Sequence[Tensor],
    running_variances_LC: Sequence[Tensor],
) -> Tensor:
    """Return R_bn, the distance of batch statistics from those of the training data.

    Sum over layers of ||running mean - mean||_2 + ||running variance - variance||_2, norms
    not squared (DeepInversion: Yin et al., CVPR 2020; CMI and FastDFKD use the same form).

    Args:
        means_LC: Batch mean of each layer's input, L tensors of shape (C,).
        variances_LC: Biased batch variance of each layer's input.
        running_means_LC: Running mean of each layer.
        running_variances_LC: Running variance of each layer.
    """
    distances = [
        torch.linalg.vector_norm(running - current)
        for running, current in [
            *zip(running_means_LC, means_LC, strict=True),
            *zip(running_variances_LC, variances_LC, strict=True),
        ]
    ]
    return torch.stack(distances).sum()


def blend(
    current_LC: Sequence[Tensor], remembered_LC: Sequence[Tensor] | None, momentum: float
) -> list[Tensor]:
    """Return (1 - m) current + m remembered, or the current values where none are remembered.

    FastDFKD compares such blends with the running statistics, which scales the gradient by
    1 - m: hence its tenfold weight on R_bn (FastDFKD: Fang et al., AAAI 2022).
    """
    if remembered_LC is None:
        return list(current_LC)
    pairs = zip(current_LC, remembered_LC, strict=True)
    return [(1 - momentum) * current + momentum * remembered for current, remembered in pairs]


class BatchNormStatistics:
    """Reads the batch statistics of every BatchNorm2d input while used as a context.

    Outside of ``with`` nothing is hooked, so ordinary forward passes cost nothing. Layers
    that track no running statistics are left out: there is nothing to compare them with.

    Args:
        model: The model to read, usually the teacher in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            module
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]
        self._handles: list[RemovableHandle] = []
        self._means: dict[int, Tensor] = {}
        self._variances: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._layers)

    def __enter__(self) -> BatchNormStatistics:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._reader(index)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # The readings hold the graph of the last forward pass alive.
        self._means.clear()
        self._variances.clear()

    def _reader(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Under autocast the input may be bfloat16, too coarse to sum over a batch.
            features_BCHW = inputs[0].float()
            variance_C, mean_C = torch.var_mean(features_BCHW, dim=_BATCH_AND_SPACE, correction=0)
            self._means[index] = mean_C
            self._variances[index] = variance_C

        return read

    @property
    def means(self) -> list[Tensor]:
        """Batch means at the last forward pass, L tensors of shape (C,), float32."""
        return [self._means[index] for index in range(len(self))]

    @property
    def variances(self) -> list[Tensor]:
        """Biased batch variances at the last forward pass, like ``means``."""
        return [self._variances[index] for index in range(len(self))]

    @property
    def running_means(self) -> list[Tensor]:
        """Running means of the layers, float32."""
        return [
            layer.running_mean.float() for layer in self._layers if layer.running_mean is not None
        ]

    @property
    def running_variances(self) -> list[Tensor]:
        """Running variances of the layers, float32."""
        return [
            layer.running_var.float() for layer in self._layers if layer.running_var is not None
        ]


def require_batch_norm(model: nn.Module, method: str, backbone: str) -> None:
    """Refuse a teacher whose data statistics can not be read.

    Args:
        model: The teacher.
        method: Key of the method that needs the statistics, for the message.
        backbone: Name of the teacher's backbone, for the message.

    Raises:
        UserError: No BatchNorm2d layer tracks running statistics.
    """
    if len(BatchNormStatistics(model)) == 0:
        raise UserError(
            subject=f"methods.{method}",
            what="needs a teacher with BatchNorm layers that track running statistics, "
            f"found none in {backbone}",
            fix="use a teacher with BatchNorm, or a method that reads no such statistics: "
            "dafl, mosaick or dfnd",
        )


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Hold models in eval mode without gradient to their parameters, then restore both.

    Synthesis differentiates through the nets with respect to images only; eval mode keeps
    the student's running statistics out of reach of images it does not train on.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    flags = [(weight, weight.requires_grad) for model in models for weight in model.parameters()]
    try:
        for model in models:
            model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, requires_grad in flags:
            weight.requires_grad_(requires_grad)
