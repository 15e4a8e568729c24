"""What an arm does to a student: what stands for f_S, how batches are drawn, when Z is rebuilt.

Imports follow the choice of arm: a vanilla student loads, and depends on, nothing else of KDCI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdci.deconfounding.arms import Arm, Strata
from kdci.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.deconfounding.compensation import Compensation
    from kdci.deconfounding.confounder import Space
    from kdci.deconfounding.logit_adjustment import LogitAdjustment
    from kdci.deconfounding.rebuilding import DictionaryRebuilder
    from kdci.models import PixelModel
    from kdci.store.artifacts import Artifact
    from kdci.substitution.bank_source import BankSource


@dataclass(frozen=True)
class StoredDictionary:
    """A dictionary Z as it was stored.

    Attributes:
        prototypes_ND: z_i; (N, D).
        proportions_N: P(z_i); (N,).
        assignments_M: Prototype of each image of the pool it was built from, where that was stored;
            (M,).
        space: Space of the predictions.
        num_requested: N asked for.
        adopted: Whether it is another teacher's, of another pool.
    """

    prototypes_ND: Tensor
    proportions_N: Tensor
    assignments_M: Tensor | None
    space: Space
    num_requested: int
    adopted: bool

    @classmethod
    def of(cls, artifact: Artifact) -> StoredDictionary:
        """Read an artifact."""
        tensors, facts = artifact.tensors("dictionary.safetensors"), artifact.facts
        return cls(
            tensors["prototypes"],
            tensors["proportions"],
            tensors.get("assignments"),
            space=facts["space"],
            num_requested=facts["requested"],
            adopted=facts["adopted"],
        )


@dataclass(frozen=True)
class Intervention:
    """An arm, with what it works on.

    Attributes:
        arm: What is done.
        num_classes: K.
        logits_MK: The teacher's logits of the pool as it is when distillation starts; (M, K). None:
            the arm does not ask.
        dictionary: Z; None: the arm has none.
        strata: What an arm whose strata are a choice draws evenly over.
        max_repeats: Cap on how often it draws an image, for each time that it would be without
            strata; None: none.
        tau: Strength of a logit adjustment.
    """

    arm: Arm
    num_classes: int
    logits_MK: Tensor | None = None
    dictionary: StoredDictionary | None = None
    strata: Strata = "classes"
    max_repeats: float | None = None
    tau: float = 1.0

    @property
    def _dictionary(self) -> StoredDictionary:
        assert self.dictionary is not None
        return self.dictionary

    @property
    def _strata(self) -> Strata | None:
        return self.strata if self.arm.strata == "chosen" else self.arm.strata

    @property
    def _max_repeats(self) -> float:
        return math.inf if self.max_repeats is None or not self.arm.capped else self.max_repeats

    def correction(
        self, settings: Mapping[str, Any], *, seed: int
    ) -> Compensation | LogitAdjustment | None:
        """Return what takes the place of f_S while training: phi, adjusted logits, or nothing.

        Args:
            settings: Of phi, the arm's changes included; see ``Compensation``.
            seed: Of phi's weights.
        """
        if self.arm.adjusted:
            from kdci.deconfounding.logit_adjustment import LogitAdjustment, log_prior

            assert self.logits_MK is not None
            prior = log_prior(self.logits_MK.argmax(dim=1), self.num_classes)
            return LogitAdjustment(prior, tau=self.tau)
        if not self.arm.compensated:
            return None
        from kdci.deconfounding.compensation import Compensation

        dictionary = self._dictionary
        return Compensation(
            dictionary.prototypes_ND,
            self._drawn_proportions() if self.arm.strata else dictionary.proportions_N,
            num_classes=self.num_classes,
            seed=seed,
            **settings,
        )

    def _drawn_proportions(self) -> Tensor:
        """Return P(z) of what the arm's strata draw from the pool as it is now.

        Of images that are made later, and of MosaicKD's fresh ones, it knows nothing.
        """
        from kdci.deconfounding.strata import drawn_proportions

        dictionary = self._dictionary
        if dictionary.adopted:
            return dictionary.proportions_N  # of another pool, whose images none of these are
        assert self.logits_MK is not None and dictionary.assignments_M is not None
        assigned_M = dictionary.assignments_M.long()
        strata_M = self.logits_MK.argmax(dim=1) if self._strata == "classes" else assigned_M
        return drawn_proportions(assigned_M, strata_M, max_repeats=self._max_repeats)

    def stratify(self, source: BankSource, teacher: PixelModel) -> None:
        """Let the source draw evenly over the arm's strata, if it has any.

        Raises:
            UserError: Strata are prototypes of another teacher's dictionary.
        """
        if self._strata is None:
            return
        from kdci.deconfounding.strata import class_strata, prototype_strata

        if self._strata == "classes":
            source.stratify(class_strata(teacher), max_repeats=self._max_repeats)
            return
        dictionary = self._dictionary
        if dictionary.adopted:
            what = "strata are prototypes of the teacher's own dictionary, this one is another's"
            by_choice = (
                "or intervention.strata to classes"
                if self.arm.strata == "chosen"
                else "or no such arm"
            )
            raise UserError("dictionary.artifact", what, f"set it to null, {by_choice}")
        stratum_of = prototype_strata(teacher, dictionary.prototypes_ND, space=dictionary.space)
        source.stratify(stratum_of, max_repeats=self._max_repeats)

    def rebuilder(
        self, source: BankSource, teacher: PixelModel, *, growth: float | None, seed: int
    ) -> DictionaryRebuilder | None:
        """Return what builds the teacher's own dictionary anew, if that is asked for.

        With strata it stays: its P(z) is that of the draw, which a rebuild would make the pool's.

        Args:
            source: Its bank is the pool that grows.
            teacher: Frozen.
            growth: Share by which it has to grow; None: the dictionary stays.
            seed: Of k-means.
        """
        arm = self.arm
        if growth is None or not arm.compensated or arm.dictionary != "own" or arm.strata:
            return None
        dictionary = self._dictionary
        if dictionary.adopted:
            return None
        from kdci.deconfounding.rebuilding import DictionaryRebuilder

        return DictionaryRebuilder(
            teacher=teacher,
            bank=source.bank,
            space=dictionary.space,
            num_prototypes=dictionary.num_requested,
            growth=growth,
            prototypes_ND=dictionary.prototypes_ND,
            seed=seed,
        )
