"""What the networks of a stage compute in: precision and memory format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdci.config.catalog import stem_for
from stages._session import Session

if TYPE_CHECKING:
    from kdci.training.arithmetic import ComputeFormat, Step

FOLDER = "formats"
"""Below the workspace's own folder: what was decided for which network."""


def format_of(
    session: Session, backbone: str, *, training: bool, stem: str | None = None
) -> ComputeFormat:
    """Return what a network of this stage computes in, and put it on the stage's card.

    Call before the stage's saved state is read: it must have been computed in the same.

    Args:
        session: The running stage, with its runtime started.
        backbone: Name of the network.
        training: Whether it is trained here; else it predicts, frozen.
        stem: Its first layers; None: as networks of this experiment have them.
    """
    from kdci.models.pretrained import build_network
    from kdci.training.arithmetic import measure, pass_of, remembered

    runtime, spec = session.runtime, session.params.data.spec
    stem = stem or stem_for(session.params.backbone.stem, spec.image_size)
    role = "trained" if training else "frozen"
    chosen = runtime.format
    if len(runtime.formats) > 1:
        shape = (spec.channels, spec.image_size, spec.image_size)
        subject = {
            "backbone": backbone,
            "stem": stem,
            "role": role,
            "image_shape": list(shape),
            "formats": [str(one) for one in runtime.formats],
            **runtime.card(),
        }

        def build(one: ComputeFormat) -> Step:
            model = build_network(
                backbone,
                spec,
                seed=0,
                stem=stem,
                device=runtime.device,
                autocast_dtype=one.autocast_dtype,
                channels_last=one.channels_last,
            )
            return pass_of(model, shape, training=training)

        chosen = remembered(
            session.layout.work / FOLDER,
            subject,
            lambda: measure(build, runtime.formats, runtime.device),
        )
    session.note_format(f"{backbone} {role}", str(chosen))
    return chosen
