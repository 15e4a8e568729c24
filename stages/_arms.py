"""What an arm does to a student: what stands for f_S, how batches are drawn, when Z is rebuilt.

Imports follow the choice of arm: a vanilla student loads, and depends on, nothing of KDCI.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdci.deconfounding.arms import Arm
from stages._session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.deconfounding.compensation import Compensation
    from kdci.deconfounding.logit_adjustment import LogitAdjustment
    from kdci.deconfounding.rebuilding import DictionaryRebuilder
    from kdci.models import PixelModel
    from kdci.substitution.base import SubstitutionSource


def correction(session: Session, arm: Arm, seed: int) -> Compensation | LogitAdjustment | None:
    """Return what takes the place of f_S while training: phi, adjusted logits, or nothing."""
    from kdci.training.runtime import derive_seed

    num_classes = session.params.data.spec.num_classes
    if arm.adjusted:
        from kdci.deconfounding.logit_adjustment import LogitAdjustment, log_prior

        logits = session.artifact("pool").tensors("predictions.safetensors")["logits"]
        prior = log_prior(logits.argmax(dim=1), num_classes)
        return LogitAdjustment(prior, tau=session.params.intervention.tau)
    if not arm.compensated:
        return None
    from kdci.deconfounding.compensation import Compensation

    block = session.params.compensation.model_copy(update=dict(arm.changes))
    tensors = session.artifact("dictionary").tensors("dictionary.safetensors")
    return Compensation(
        tensors["prototypes"],
        _drawn_proportions(session, arm) if arm.strata else tensors["proportions"],
        num_classes=num_classes,
        fusion=block.fusion,
        scale=block.scale,
        hidden_dim=block.hidden_dim,
        weights=block.lambda_,
        prototypes=block.prototypes,
        proportions=block.proportions,
        initialisation=block.initialisation,
        seed=derive_seed(seed, "compensation"),
    )


def _strata(session: Session, arm: Arm) -> str | None:
    return session.params.intervention.strata if arm.strata == "chosen" else arm.strata


def _max_repeats(session: Session, arm: Arm) -> float:
    cap = session.params.intervention.max_repeats
    return math.inf if cap is None or not arm.capped else cap


def _drawn_proportions(session: Session, arm: Arm) -> Tensor:
    """Return P(z) of what the arm's strata draw from the pool as it is when distillation starts.

    Of images that are made later, and of MosaicKD's fresh ones, it knows nothing.
    """
    from kdci.deconfounding.strata import drawn_proportions

    dictionary = session.artifact("dictionary")
    tensors = dictionary.tensors("dictionary.safetensors")
    if dictionary.facts["adopted"]:
        return tensors["proportions"]  # of another pool, whose images none of these are
    assignments_M = tensors["assignments"].long()
    logits_MK = session.artifact("pool").tensors("predictions.safetensors")["logits"]
    strata_M = logits_MK.argmax(dim=1) if _strata(session, arm) == "classes" else assignments_M
    return drawn_proportions(assignments_M, strata_M, max_repeats=_max_repeats(session, arm))


def stratify(session: Session, arm: Arm, teacher: PixelModel, source: SubstitutionSource) -> None:
    """Let the source draw evenly over the arm's strata, if it has any."""
    strata, max_repeats = _strata(session, arm), _max_repeats(session, arm)
    if strata is None:
        return
    from kdci.deconfounding.strata import class_strata, prototype_strata
    from kdci.errors import UserError

    if strata == "classes":
        source.stratify(class_strata(teacher), max_repeats=max_repeats)
        return
    dictionary = session.artifact("dictionary")
    if dictionary.facts["adopted"]:
        what = "strata are prototypes of the teacher's own dictionary, this one is another's"
        by_choice = (
            "or intervention.strata to classes" if arm.strata == "chosen" else "or no such arm"
        )
        fix = f"set it to null, {by_choice}"
        raise UserError("dictionary.artifact", what, fix)
    prototypes = dictionary.tensors("dictionary.safetensors")["prototypes"]
    stratum_of = prototype_strata(teacher, prototypes, space=dictionary.facts["space"])
    source.stratify(stratum_of, max_repeats=max_repeats)


def rebuilder_of(
    session: Session, arm: Arm, teacher: PixelModel, source: SubstitutionSource
) -> DictionaryRebuilder | None:
    """Return what builds the teacher's own dictionary anew, if that is asked for.

    With strata it stays: its P(z) is that of the draw, which a rebuild would make the pool's again.
    """
    growth = session.params.compensation.rebuild
    if growth is None or not arm.compensated or arm.dictionary != "own" or arm.strata:
        return None
    dictionary = session.artifact("dictionary")
    if dictionary.facts["adopted"]:
        return None
    from kdci.deconfounding.rebuilding import DictionaryRebuilder
    from kdci.training.runtime import derive_seed

    return DictionaryRebuilder(
        teacher=teacher,
        bank=source.bank,
        space=dictionary.facts["space"],
        num_prototypes=dictionary.facts["requested"],
        growth=growth,
        prototypes_ND=dictionary.tensors("dictionary.safetensors")["prototypes"],
        seed=derive_seed(int(session.node.point["pool_seed"]), "dictionary"),
    )
