"""The dictionary built anew while distilling, as the pool grows.

Methods that synthesise on the way (Fast, CMI, DeepInv) add images that the first dictionary has
not seen. k-means starts from the prototypes so far, so that z_i stays about the same stratum and
lambda_i keeps its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdci.data.bank.image_bank import ImageBank
from kdci.deconfounding.confounder import ConfounderDictionary, Space, build_dictionary, predict
from kdci.models import PixelModel

_BATCH = 512


@dataclass
class DictionaryRebuilder:
    """Builds Z from a bank again, each time it has grown by a share.

    Attributes:
        teacher: The pre-trained model of the dictionary, in eval mode.
        bank: The pool that grows.
        space: Space of the predictions.
        num_prototypes: N asked for.
        growth: Share of the bank that has to be new since the dictionary was last built, above 0.
        prototypes_ND: z_i so far, where k-means starts; (N, D).
        seed: Of k-means.
        built: Each dictionary with the step it was built at, in order.
    """

    teacher: PixelModel
    bank: ImageBank
    space: Space
    num_prototypes: int
    growth: float
    prototypes_ND: Tensor
    seed: int
    built: list[tuple[int, ConfounderDictionary]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._num_clustered = len(self.bank)
        self._predictions_MD = torch.empty(0, self.prototypes_ND.shape[1])

    def offer(self, step: int) -> ConfounderDictionary | None:
        """Return a new dictionary if the bank has grown enough.

        Args:
            step: Distillation steps so far, to tell the dictionaries apart.
        """
        if len(self.bank) < (1 + self.growth) * self._num_clustered:
            return None
        self._predict_new_rows()
        start = self.prototypes_ND if len(self.prototypes_ND) == self.num_prototypes else None
        dictionary = build_dictionary(
            self._predictions_MD,
            num_prototypes=self.num_prototypes,
            seed=self.seed,
            start_ND=start,
        )
        self.prototypes_ND = dictionary.prototypes_ND
        self._num_clustered = len(self.bank)
        self.built.append((step, dictionary))
        return dictionary

    def _predict_new_rows(self) -> None:
        device = next(self.teacher.parameters()).device
        rows = torch.split(torch.arange(len(self._predictions_MD), len(self.bank)), _BATCH)
        batches = (self.bank.rows(part).to(device).float() / 255 for part in rows)
        predictions, _ = predict(self.teacher, batches, space=self.space)
        self._predictions_MD = torch.cat([self._predictions_MD, predictions])

    def state_dict(self) -> dict[str, Any]:
        """Return all that rebuilding on needs; the bank is kept by its source."""
        return {
            "prototypes": self.prototypes_ND,
            "num_clustered": self._num_clustered,
            "predictions": self._predictions_MD,
            "built": [
                {
                    "step": step,
                    "prototypes": dictionary.prototypes_ND,
                    "proportions": dictionary.proportions_N,
                    "spread": dictionary.spread_N,
                }
                for step, dictionary in self.built
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.prototypes_ND = state["prototypes"]
        self._num_clustered = state["num_clustered"]
        self._predictions_MD = state["predictions"]
        self.built = [
            (
                entry["step"],
                ConfounderDictionary(entry["prototypes"], entry["proportions"], entry["spread"]),
            )
            for entry in state["built"]
        ]
