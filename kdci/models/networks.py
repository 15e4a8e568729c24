"""The networks of a process, each in the precision and memory format that it is fastest in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdci.config.catalog import DatasetSpec
from kdci.models import PixelModel
from kdci.models.pretrained import build_network, load_teacher, stem_of
from kdci.store.artifacts import Artifact
from kdci.training.arithmetic import ComputeFormat, Step, measure, pass_of, remembered
from kdci.training.runtime import Runtime


@dataclass(frozen=True)
class Networks:
    """Builds and loads networks in the format that is chosen for them.

    Attributes:
        runtime: Device and formats; of one format nothing is measured.
        folder: Where what was decided is kept; see ``kdci.training.arithmetic.remembered``.
        note: Told what each network computes in, for results depend on it. A saved state must have
            been computed in the same: ask for the networks before it is read.
    """

    runtime: Runtime
    folder: Path
    note: Callable[[str, str], None] = lambda network, chosen: None

    def teacher(self, artifact: Artifact, spec: DatasetSpec) -> PixelModel:
        """Load a teacher, frozen; see ``kdci.models.pretrained.load_teacher``."""
        backbone, stem = str(artifact.facts["backbone"]), stem_of(artifact)
        chosen = self.format_of(backbone, spec, stem=stem, training=False)
        return load_teacher(artifact, spec, device=self.runtime.device, **chosen.options)

    def stand_in(self, backbone: str, spec: DatasetSpec, *, stem: str) -> PixelModel:
        """Build a network with random weights that computes as a teacher would."""
        chosen = self.format_of(backbone, spec, stem=stem, training=False)
        return self._build(backbone, spec, chosen, stem=stem, seed=0)

    def untrained(self, backbone: str, spec: DatasetSpec, *, stem: str, seed: int) -> PixelModel:
        """Build a network to be trained; see ``kdci.models.pretrained.build_network``."""
        chosen = self.format_of(backbone, spec, stem=stem, training=True)
        return self._build(backbone, spec, chosen, stem=stem, seed=seed)

    def format_of(
        self, backbone: str, spec: DatasetSpec, *, stem: str, training: bool
    ) -> ComputeFormat:
        """Choose what a network computes in, and note it.

        Args:
            backbone: Its name.
            spec: The dataset that it takes images of.
            stem: Its first layers.
            training: Whether it is trained here; else it predicts, frozen.
        """
        role = "trained" if training else "frozen"
        chosen, formats = self.runtime.format, self.runtime.formats
        if len(formats) > 1:
            subject = {
                "backbone": backbone,
                "stem": stem,
                "role": role,
                "image_shape": list(spec.image_shape),
                "formats": [str(one) for one in formats],
                **self.runtime.card(),
            }

            def build(one: ComputeFormat) -> Step:
                model = self._build(backbone, spec, one, stem=stem, seed=0)
                return pass_of(model, spec.image_shape, training=training)

            chosen = remembered(
                self.folder, subject, lambda: measure(build, formats, self.runtime.device)
            )
        self.note(f"{backbone} {role}", str(chosen))
        return chosen

    def _build(
        self, backbone: str, spec: DatasetSpec, chosen: ComputeFormat, *, stem: str, seed: int
    ) -> PixelModel:
        device = self.runtime.device
        return build_network(backbone, spec, seed=seed, stem=stem, device=device, **chosen.options)
