"""The projection that a contrastive loss compares features in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdci.models.generators.generating import BesideTeacher


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
