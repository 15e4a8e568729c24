"""Where a case is measured: a runtime, a folder, and the networks and images in it.

Networks come the way stages get theirs, format probe and folding included. Everything is random and
depends on names alone, so that all ways of a case get the same weights and the same pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.image_files import write_images
from benchmarks.reference.networks import Normalizer, classifier
from kdci.config.catalog import DATASETS, facts_of_spec
from kdci.config.params import Runtime as Settings
from kdci.data.bank.image_bank import ImageBank, to_bytes
from kdci.data.bank.mapped_images import save_npy
from kdci.models import PixelModel
from kdci.models.compiling import compile_trained, for_predictions
from kdci.models.networks import Networks
from kdci.models.pretrained import MODEL_FILE, build_network
from kdci.store.artifacts import new_artifact, open_artifact
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.substitution.registry import block_of
from kdci.training.runtime import Runtime, generator

SPEC = DATASETS["cifar10"]
"""32x32x3 images of 10 classes."""
SHAPE = SPEC.image_shape


@dataclass(frozen=True)
class Place:
    """See the module's docstring.

    Attributes:
        runtime: Device, threads and precision.
        folder: Empty at first.
        num_images: Of the pool.
        settings: The params block `runtime`.
        decided: Folder of what the format probe has decided, which several places may share;
            None: in the folder.
        formats: Filled with what each network computes in.
    """

    runtime: Runtime
    folder: Path
    num_images: int = 1024
    settings: Settings = field(default_factory=Settings)
    decided: Path | None = None
    formats: dict[str, str] = field(default_factory=dict)

    @property
    def _networks(self) -> Networks:
        return Networks(self.runtime, self.decided or self.folder, self.formats.__setitem__)

    def images(self) -> Tensor:
        """Return the pool: smooth random pictures, uint8 (M, 3, 32, 32)."""
        random = generator("benchmark", "images")
        small = torch.rand(self.num_images, 3, 8, 8, generator=random)
        smooth = F.interpolate(small, size=SHAPE[1:], mode="bilinear", align_corners=False)
        grain = torch.randn(smooth.shape, generator=random) / 50
        return to_bytes(smooth + grain)

    def png_folder(self) -> Path:
        """Return a folder with the pool's images as PNG files."""
        folder = self.folder / "png"
        if not folder.exists():
            write_images(self.images(), folder)
        return folder

    def npy_file(self) -> Path:
        """Return a file with the pool's images as the pipeline keeps them."""
        file = self.folder / "images.npy"
        if not file.exists():
            save_npy(self.images(), file)
        return file

    def teacher(self, name: str) -> PixelModel:
        """Return a teacher as stages get theirs: from an artifact, frozen, nothing folded."""
        path = self.folder / "teachers" / name
        if not path.exists():
            facts = {
                "backbone": name,
                **facts_of_spec(SPEC),
            }
            model = build_network(name, SPEC, seed=0)
            with new_artifact(path, kind="teacher", card={"facts": facts}) as draft:
                draft.save_tensors(MODEL_FILE, model.state_dict())
        return self._networks.teacher(open_artifact(path, kind="teacher"), SPEC)

    def predicting(self, teacher: PixelModel) -> PixelModel:
        """Return a teacher as it is where it predicts alone."""
        return for_predictions(
            teacher,
            SPEC.image_size,
            folded=self.settings.fold_teacher,
            compiled=self.settings.compile != "none",
        )

    def student(self, name: str) -> PixelModel:
        """Return a student as the distill stage builds its own."""
        student = self._networks.untrained(name, SPEC, stem="cifar", seed=1)
        if self.settings.compile == "both":
            compile_trained(student)
        return student

    def source(self, method: str, teacher: PixelModel, **values: Any) -> BankSource:
        """Return a method's source with the pool's images in its bank.

        Args:
            method: Its name.
            teacher: Frozen.
            values: What differs from the method's defaults.
        """
        context = SourceContext(
            teacher=teacher,
            spec=SPEC,
            bank=ImageBank(_unused(self.folder / f"{method}.bin"), shape=SHAPE),
            seed=0,
            teacher_accuracy=0.9,
        )
        # Not validated: a measurement begins without a warm-up, which params may not.
        source = block_of(method).model_construct(**values).source(context)
        source.bank.append(self.images().float() / 255)
        state = source.state_dict()
        if "num_open_world" in state:
            source.load_state_dict({**state, "num_open_world": self.num_images})
        return source

    def plain(self, name: str, *, seed: int) -> nn.Module:
        """Return a baseline's network with the weights of the project's of the same seed."""
        network = classifier(name, SPEC.num_classes)
        weights = build_network(name, SPEC, seed=seed).backbone.state_dict()
        network.load_state_dict(weights)
        return network.to(self.runtime.device)

    def normalizer(self) -> Normalizer:
        """Return what a baseline's teacher wants images to go through."""
        return Normalizer(SPEC.mean, SPEC.std)


def _unused(path: Path) -> Path:
    """Return the path, or one beside it where there is a file already."""
    number = 0
    while path.exists():
        number += 1
        path = path.with_stem(f"{path.stem.split('~')[0]}~{number}")
    return path
