"""What the documentation shows is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]


def code_blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_loop_of_the_library_page_trains_a_student() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    substitutes = torch.rand(200, 1, 4, 4)
    names = {
        "teacher": teacher,
        "student": student,
        "substitutes": substitutes,
        "batches": substitutes.split(20) * 100,
    }
    with torch.no_grad():
        before = (student(substitutes).argmax(1) == teacher(substitutes).argmax(1)).float().mean()
    block = code_blocks("library.md")[0].replace("num_prototypes=10", "num_prototypes=5")
    exec(compile(block, "library.md", "exec"), names)
    with torch.no_grad():
        compensated = names["compensation"](student(substitutes))  # type: ignore[operator]
        after = (compensated.argmax(1) == teacher(substitutes).argmax(1)).float().mean()
    assert float(after) > max(0.8, float(before))


def test_every_relative_link_of_the_documentation_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
