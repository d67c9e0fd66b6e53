"""The series of docs/metrics.md, which tests/unit/test_documented.py compares with the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


class Series(NamedTuple):
    """A row of the page."""

    kind: str
    labels: frozenset[str]


def documented_series() -> dict[str, Series]:
    """Every series by its name, those of the supervisor included."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `lakthan_"):
            found[cells[0].strip("`")] = Series(cells[1], frozenset(re.findall(r"`(\w+)`", cells[2])))
    return found
