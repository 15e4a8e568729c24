from __future__ import annotations

import torch

from kdci.synthesis.inversion import BestBatch


def test_best_batch_is_a_copy_of_the_lowest() -> None:
    best = BestBatch("fast")
    images = torch.full((2, 1, 1, 1), 0.5)
    for loss, value in [(2.0, 0.5), (1.0, 0.25), (3.0, 0.75)]:
        images.fill_(value)
        readings = {"inversion_loss": torch.tensor(loss), "bn": torch.tensor(value)}
        best.offer(readings, images=images, twice=2 * images)
    images.fill_(9.0)
    kept, metrics = best.result()
    assert kept["images"].flatten().tolist() == [0.25, 0.25]
    assert kept["twice"].flatten().tolist() == [0.5, 0.5]
    assert metrics == {"inversion_loss": 1.0, "bn": 0.25}


def test_a_first_offer_is_a_copy_too() -> None:
    best = BestBatch("fast")
    images = torch.full((2, 1, 1, 1), 9.0)
    best.offer({"inversion_loss": torch.tensor(0.0)}, images=images)
    images.zero_()
    assert best.result()[0]["images"].flatten().tolist() == [9.0, 9.0]
