"""Images for a case study: which a student mends, which it spoils, and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdci.training.scoring import ScoredSet, Scores

NUM_EXAMPLES = 24
NUM_OF_A_KIND = 10
"""Of the examples, at most so many that KDCI mends, and as many that it spoils."""


def choose_examples(
    on: ScoredSet, shown: Mapping[str, Scores], *, labelled: bool, deploy: str
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Choose images: what only KDCI gets right, what only vanilla does, others.

    Where there is no KDCI student, those that the student and the teacher take for different
    classes come first.

    Args:
        on: What students were scored on.
        shown: Scores by arm, `vanilla` among them.
        labelled: Whether ``on`` expects labels.
        deploy: Which of KDCI's two predictions counts.

    Returns:
        The images, and what each of them is taken for.
    """
    vanilla_M = shown["vanilla"].classes("backbone")
    kdci_M = shown["kdci"].classes(deploy) if "kdci" in shown else None
    assert vanilla_M is not None
    if kdci_M is None:
        differ = vanilla_M != on.teacher
        groups = {"differ": differ, "other": ~differ}
    else:
        vanilla_right, kdci_right = vanilla_M == on.expected, kdci_M == on.expected
        gained, lost = kdci_right & ~vanilla_right, vanilla_right & ~kdci_right
        groups = {"gained": gained, "lost": lost, "other": ~gained & ~lost}
    chosen: list[tuple[int, str]] = []
    for name, members in groups.items():
        limit = NUM_OF_A_KIND if name in ("gained", "lost") else NUM_EXAMPLES - len(chosen)
        chosen += [(int(i), name) for i in members.nonzero().flatten()[:limit]]
    examples: list[dict[str, Any]] = [
        {
            "label": int(on.expected[i]) if labelled else None,
            "teacher": int(on.teacher[i]),
            "vanilla": int(vanilla_M[i]),
            "kdci": None if kdci_M is None else int(kdci_M[i]),
            "group": group,
        }
        for i, group in chosen
    ]
    return on.images[torch.tensor([i for i, _ in chosen])], examples
