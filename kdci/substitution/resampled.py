"""A pool with a known shift, which stays as it is: the benchmark's source, and no method.

Its images come from another method's pool, resampled and degraded by
``kdci.deconfounding.known_shift``;
nothing is synthesised while distilling, or the shift would not be known any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdci.models import PixelModel
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SoftLabelCriterion, SourceContext, StudentCriterion


class ResampledSource(BankSource):
    """The fixed images of a bank; see ``SubstitutionSource``.

    Args:
        context: Dataset, bank and seed; the bank holds the images.
        temperature: T of the student's soft-label loss.
    """

    def __init__(self, context: SourceContext, *, temperature: float = 4.0) -> None:
        super().__init__(context)
        self.temperature = temperature

    @property
    def num_preparations(self) -> int:
        """None: the images are there."""
        return 0

    def prepare(self) -> Iterator[dict[str, float]]:
        """Do nothing; see the protocol."""
        return iter(())

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Do nothing: the shift is to stay as it is."""
        return {}

    def criterion(self) -> StudentCriterion:
        """Return the soft-label loss."""
        return SoftLabelCriterion(self.temperature)
