"""CMI's memory of earlier images and the learned space in which new ones must differ from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdci.models.generators.generating import BesideTeacher
from kdci.models.states import Stateful
from kdci.synthesis.feature_memory import FeatureMemory
from kdci.training.losses import contrastive_loss
from kdci.training.optimizers import Adam, Moments


class ProjectionHead(BesideTeacher):
    """Linear d to d, ReLU, linear d to P, scaled to unit length (CMI: Fang et al., IJCAI 2021).

    Args:
        num_features: Length d of the features.
        projection_dim: Length P of the projections.
    """

    def __init__(self, num_features: int, projection_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, num_features)
        self.output = nn.Linear(num_features, projection_dim)

    def forward(self, features_Bd: Tensor) -> Tensor:
        """Map features (B, d) to projections of Euclidean length 1, (B, P)."""
        with self.arithmetic.autocast(features_Bd.device):
            projections_BP: Tensor = self.output(F.relu(self.hidden(features_Bd)))
        return F.normalize(projections_BP.to(features_Bd.dtype), dim=1)


class InstanceDiscrimination(Stateful):
    """The contrastive term of CMI with all that outlives a batch: head, moments and memory.

    Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021.

    Attributes:
        head: Projects features; it learns with the images.
        memory: Features of earlier images, (local view, global view) of each.

    Args:
        head: Its device is where ``loss`` computes.
        memory: Of as many features as the head takes.
        learning_rate: Adam rate of the head.
        temperature: Of the contrastive loss, above 0.
        num_negatives: Images of the memory that each loss compares with.
    """

    kept = ("head", "_moments", "memory")

    def __init__(
        self,
        head: ProjectionHead,
        memory: FeatureMemory,
        *,
        learning_rate: float,
        temperature: float,
        num_negatives: int,
    ) -> None:
        self.head = head
        self.memory = memory
        self.temperature = temperature
        self.num_negatives = num_negatives
        self._optimizer = Adam(head.parameters(), lr=learning_rate)
        self._moments = Moments(self._optimizer)

    def loss(self, local_Bd: Tensor, global_Bd: Tensor, random: torch.Generator) -> Tensor:
        """Return the contrastive loss of a batch against itself and a part of the memory.

        Gradient flows to the local view and, from the local side only, to the head.

        Args:
            local_Bd: Features of each image's local view, (B, d).
            global_Bd: Features of its global view, (B, d).
            random: CPU stream to draw the negatives from.
        """
        negatives = self.memory.draw(self.num_negatives, random).to(local_Bd.device)
        # Apart: of the negatives, most of the rows, no gradient to the features is computed then.
        queries = torch.cat([self.head(local_Bd), self.head(negatives[:, 0])])
        with torch.no_grad():
            keys = self.head(torch.cat([global_Bd, negatives[:, 1]]))
        return contrastive_loss(
            queries, keys, temperature=self.temperature, num_current=len(local_Bd)
        )

    def learn(self) -> None:
        """Move the head along the gradients its parameters hold, and drop them."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def remember(self, local_Bd: Tensor, global_Bd: Tensor) -> None:
        """Let a batch's features into the memory, as they are: heads to come project them."""
        self.memory.add(torch.stack([local_Bd, global_Bd], dim=1))
