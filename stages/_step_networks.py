"""The networks of a distillation step: folded and compiled, as the params say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages._session import Session

if TYPE_CHECKING:
    from kdci.models import PixelModel


def predicting(session: Session, teacher: PixelModel) -> PixelModel:
    """Return the teacher for predictions alone: folded and compiled, as the params say.

    Its batch size must not change, or it is compiled anew.
    """
    from kdci.models.compiling import compile_frozen
    from kdci.models.folding import fold_batch_norms

    block = session.params.runtime
    if block.fold_teacher:
        teacher = fold_batch_norms(teacher, session.params.data.spec.image_size)
    return compile_frozen(teacher) if block.compile != "none" else teacher


def trained(session: Session, student: PixelModel) -> None:
    """Compile a network that is trained, in place, where the params say so."""
    from kdci.models.compiling import compile_trained

    if session.params.runtime.compile == "both":
        compile_trained(student)
