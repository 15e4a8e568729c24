"""CMI (Contrastive Model Inversion): a generator from scratch for every batch, kept diverse.

Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021.
A call re-initialises the generator, fits it and fresh latents to the teacher for K steps,
and keeps the best batch it saw. A contrastive term asks that each image be told apart, by
two augmented views of it in the teacher's features, from the rest of the batch and from a
memory of earlier batches: without it, calls that start alike end alike.

Where this differs from the authors' public code, on purpose:

- A full memory is drawn from like any other. There the write pointer stands for the number
  of rows and is 0 when the memory has just been filled: that call gets no negatives and a
  loss that is NaN, and a batch of an untrained generator's noise enters the pool.
- A term of weight 0 is left out with all that it needs: for ``bn_weight`` the statistics, for
  ``adversarial_weight`` the student's forward pass, for ``contrastive_weight`` (which crashes
  there) the second view.
- The pool is made before distillation without a student, then every refresh adds a batch
  that is adversarial to it: the authors' two stages, at one setting of everything else.
- A ResNet-18 teacher is read at its four stages, as ResNet-34 is; there, at every BatchNorm.
- Crop and flip are those that the dataset allows.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from kdci.config.block import Count, NonNegative, Positive, refuse
from kdci.data.bank.resized_crop import random_resized_crop
from kdci.models import PixelModel
from kdci.models.generators.generating import build_beside
from kdci.models.generators.generator import ADAM_BETAS, reset_parameters_
from kdci.substitution.base import SourceContext
from kdci.substitution.block import CallsBlock
from kdci.synthesis.feature_memory import FeatureMemory
from kdci.synthesis.instance_discrimination import InstanceDiscrimination, ProjectionHead
from kdci.synthesis.inversion import BestBatch, InversionSource, frozen, generator_of
from kdci.synthesis.layer_features import LayerFeatures, feature_layers
from kdci.training.losses import bn_statistics_loss, disagreement, weighted_sum
from kdci.training.optimizers import Adam, set_gradients

LOCAL_SCALE = (0.25, 1.0)
"""Share of the image's area that a local view shows."""


class Cmi(CallsBlock):
    """CMI (IJCAI 2021); the defaults are the authors' for CIFAR-10, WRN-40-2 teacher."""

    needs_batch_norm: ClassVar[bool] = True

    latent_dim: Count = 256
    """Length of a latent."""
    generator_width: Count = 64
    """Channels of the generator's last block (ngf)."""
    num_steps: Count = 200
    """Steps a call (K)."""
    learning_rate: Positive = 1e-3
    """Adam's rate of generator, latents and projection head."""
    bn_weight: NonNegative = 1.0
    """Weight of R_bn; 0: it is not computed."""
    one_hot_weight: NonNegative = 1.0
    """Weight of the cross-entropy to the targets."""
    adversarial_weight: NonNegative = 0.5
    """Weight of the disagreement with the student; 0: the student is not run."""
    contrastive_weight: NonNegative = 0.8
    """Weight of the contrastive loss; 0: there is no second view."""
    contrastive_temperature: Positive = 0.2
    """Temperature of the contrastive loss."""
    projection_dim: Count = 256
    """Length of the vectors that the contrastive loss compares."""
    memory_size: Count = 40_960
    """Earlier images whose features are remembered; at least a batch."""
    num_negatives: Count = 4096
    """Of these, drawn for each step."""
    warmup_calls: Count = 200
    """Calls without a student: the pool of the substitute stage."""
    temperature: Positive = 20.0
    """T of the student's soft-label loss."""

    @model_validator(mode="after")
    def _memory_holds_a_batch(self) -> Self:
        if self.memory_size < self.batch_size:
            refuse("memory_size", f"has to hold a batch of {self.batch_size}")
        return self

    def source(self, context: SourceContext) -> CmiSource:
        """Build the source; see the base class."""
        return CmiSource(context, self)


class CmiSource(InversionSource):
    """Substitution images by CMI; see the module's docstring and ``BankSource``.

    Head, memory and random streams are what goes on; the generator starts anew at each call.
    """

    method = "cmi"
    kept = ("calls", "discrimination")
    params: Cmi

    def __init__(self, context: SourceContext, params: Cmi) -> None:
        super().__init__(context, params)
        self._layers = LayerFeatures(feature_layers(context.teacher))
        self._generator = generator_of(self)
        num_features = self._num_features()
        head = build_beside(
            context.teacher,
            lambda: ProjectionHead(num_features, params.projection_dim),
            self.random,
        )
        self.discrimination = InstanceDiscrimination(
            head,
            FeatureMemory(params.memory_size, num_features),
            learning_rate=params.learning_rate,
            temperature=params.contrastive_temperature,
            num_negatives=params.num_negatives,
        )

    def _num_features(self) -> int:
        """Return how many features the teacher's layers give an image."""
        spec, teacher = self.context.spec, self.context.teacher
        blank = torch.zeros(1, spec.channels, spec.image_size, spec.image_size)
        with frozen(teacher), torch.no_grad(), self._layers as layers:
            teacher(blank.to(self.context.device))
            return layers.features.shape[1]

    def invert(self, student: PixelModel | None) -> tuple[Tensor, dict[str, float]]:
        """Fit a new generator for K steps, and remember the best batch's features."""
        reset_parameters_(self._generator, self.random)
        latents = self._generator.latents(self.params.batch_size, self.random).requires_grad_()
        targets = self.targets().sort().values.to(self.context.device)
        fitted = [*self._generator.parameters(), latents]
        optimizer = Adam(fitted, lr=self.params.learning_rate, betas=ADAM_BETAS)
        head = self.discrimination.head.parameters() if self.weights["contrastive"] else ()
        leaves = [*fitted, *head]
        best = BestBatch(self.method)
        for _ in range(self.params.num_steps):
            images = self._generator(latents)
            readings, features = self._readings(images, targets, student)
            best.offer(readings, images=images, **features)
            set_gradients(readings["inversion_loss"], leaves)
            optimizer.step()
            self.discrimination.learn()
        optimizer.zero_grad()
        kept, metrics = best.result()
        if self.weights["contrastive"]:
            self.discrimination.remember(kept["local"], kept["global_"])
        return kept["images"], metrics

    def _readings(
        self, images: Tensor, targets: Tensor, student: PixelModel | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms for images seen through fresh views with their sum, and features.

        The features of both views, (B, d) each, are left out where nothing compares them.
        """
        views = self.view(images)
        with self.reading() as statistics, self._layers as layers:
            logits, global_features = self.context.teacher(views).logits, layers.features
            bn = bn_statistics_loss(*statistics.compared) if statistics else logits.new_zeros(())
        terms = {"bn": bn, "one_hot": F.cross_entropy(logits, targets)}
        terms["adversarial"] = terms["contrastive"] = logits.new_zeros(())
        features = {}
        if student is not None:
            terms["adversarial"] = disagreement(student(views).logits, logits)
        if self.weights["contrastive"]:
            local_features = self._local_features(images)
            features = {"local": local_features, "global_": global_features}
            terms["contrastive"] = self.discrimination.loss(
                local_features, global_features, self.random
            )
        return {"inversion_loss": weighted_sum(terms, self.weights), **terms}, features

    def _local_features(self, images: Tensor) -> Tensor:
        """Return the teacher's features of a random part of each image, enlarged, (B, d)."""
        views = random_resized_crop(
            images, scale=LOCAL_SCALE, flip=self.context.spec.flip, generator=self.random
        )
        with self._layers as layers:
            self.context.teacher(views)
            return layers.features
