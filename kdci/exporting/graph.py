"""A student as a graph: what is traced, with phi folded into constants.

In training phi's scores go over the batch in blocks (``kdci.deconfounding.additive_attention``); a
tracer takes their number for a constant, and with it the largest batch that the graph admits. Here
they are plain operations, and what depends on the dictionary alone is computed once.
"""

# B = batch, N = prototypes, D = dimension of a prototype, K = classes, A = attention width

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdci.errors import KdciError, UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from kdci.deconfounding.compensation import Compensation
    from kdci.models import PixelModel
    from kdci.models.students import Student


class ExportError(KdciError):
    """A student can not be written as a graph."""

    exit_code = 2


class FoldedCompensation(nn.Module):
    """phi(f_S, F(z)) of a trained module, its dictionary folded in.

    lambda and phi are those of ``Compensation``. W_k z_i, and scale z_i P(z_i) through W_g, do not
    depend on the image: they are kept in the place of z, P(z), the scale, W_k and W_g.

    Args:
        phi: With learned lambda.
    """

    w_q_AK: Tensor
    key_NA: Tensor
    w_t_A: Tensor
    prior_NK: Tensor
    w_h_KK: Tensor | None

    def __init__(self, phi: Compensation) -> None:
        super().__init__()
        with torch.no_grad():
            prior_ND = phi.scale * phi.factors_N[:, None] * phi.prototypes_ND
            constants = {
                "w_q_AK": phi.w_q.weight,
                "key_NA": phi.prototypes_ND @ phi.w_k.weight.T,
                "w_t_A": phi.w_t.weight[0],
                "prior_NK": prior_ND if phi.fusion == "identity" else prior_ND @ phi.w_g.weight.T,
                "w_h_KK": phi.w_h.weight if phi.fusion == "linear" else None,
            }
        for name, constant in constants.items():
            self.register_buffer(name, None if constant is None else constant.detach().clone())

    def forward(self, logits_BK: Tensor) -> Tensor:
        """Return the compensated logits (B, K) of raw ones (B, K)."""
        query_BA = logits_BK @ self.w_q_AK.T
        scores_BN = (query_BA[:, None, :] + self.key_NA).tanh() @ self.w_t_A
        base_BK = logits_BK if self.w_h_KK is None else logits_BK @ self.w_h_KK.T
        return base_BK + scores_BN.softmax(dim=1) @ self.prior_NK


class DeployedStudent(nn.Module):
    """What is traced: images to logits, with nothing that only training needs."""

    def __init__(self, backbone: PixelModel, phi: FoldedCompensation | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.phi = phi

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W), float32 in [0, 1]."""
        logits: Tensor = self.backbone(images).logits
        return logits if self.phi is None else self.phi(logits)


@dataclass(frozen=True)
class Graph:
    """A traced student.

    Attributes:
        program: float32 images (N, C, H, W) in [0, 1] to logits (N, K), any N.
        shape: C, H and W.
        num_classes: K.
    """

    program: ExportedProgram
    shape: tuple[int, int, int]
    num_classes: int


def require_form(facts: Mapping[str, Any], deploy: str, *, subject: str) -> None:
    """Check from a student's card that it can be deployed in a form.

    Args:
        facts: Of the card.
        deploy: `backbone` or `compensated`.
        subject: Whom the error is about.

    Raises:
        UserError: It has no compensation, or one that draws afresh.
    """
    if deploy != "compensated":
        return
    if facts["compensation"] is None:
        what = f"{facts['variant']} has no compensation to deploy"
    elif facts["compensation"]["weights"] == "random":
        what = "its lambda is drawn afresh for each batch, which no graph repeats"
    else:
        return
    raise UserError(subject, what, "use --deploy backbone")


def trace(student: Student, facts: Mapping[str, Any], *, subject: str) -> Graph:
    """Return a student as a graph, in the form that its ``deploy`` says.

    Args:
        student: On the CPU. It is put in eval mode and its backbone frozen.
        facts: Of its card.
        subject: Whom errors are about.

    Raises:
        UserError: It can not be deployed in this form.
        ExportError: It has no graph, as when it branches on its data.
    """
    require_form(facts, student.deploy, subject=subject)
    compensated = student.deploy == "compensated" and student.compensation is not None
    phi = FoldedCompensation(student.compensation) if compensated else None  # type: ignore[arg-type]
    shape = (facts["channels"], facts["image_size"], facts["image_size"])
    model = DeployedStudent(student.backbone, phi).eval().requires_grad_(requires_grad=False)
    # Two images: of one, the exporter would take the batch size for a constant.
    example = torch.full((2, *shape), 0.5)
    batch = torch.export.Dim("batch")
    with exporting(subject):
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    _forget_sources(program)
    return Graph(program, shape, facts["num_classes"])


def _forget_sources(program: ExportedProgram) -> None:
    """Remove the stack traces, which tell of this machine's folders to whoever reads the file."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


@contextmanager
def exporting(subject: str) -> Iterator[None]:
    """Word a failure in one line, and keep the exporters' own warnings to themselves.

    Raises:
        ExportError: Whatever went wrong, but for a full disk and errors of our own.
    """
    heard = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, KdciError):
        raise
    except Exception as error:
        # Whatever the tracer meets: a student that branches on its data has no graph.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(subject, f"can not be exported: {lines[0][:200]}") from error
    finally:
        logging.disable(heard)
