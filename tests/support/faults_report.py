"""What came of the faults, for the terminal and for a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table

from faults.play import Played

_HEADINGS = (
    "fault",
    "played",
    "served right",
    "of these while broken",
    "refused",
    "no answer",
    "wrong",
    "lost",
    "well again after",
)


def _rows(results: Sequence[Played]) -> list[tuple[str, ...]]:
    """One for each fault, its repetitions added up."""
    rows = []
    for name in dict.fromkeys(each.fault for each in results):
        same = [each for each in results if each.fault == name and not each.failed]
        missing = sum(each.fault == name for each in results) - len(same)
        recoveries = [each.recovery for each in same]
        longest = "never" if None in recoveries or not same else f"{max(each or 0.0 for each in recoveries):.1f} s"
        counts = (
            sum(each.right.total() for each in same),
            sum(each.during.total() for each in same),
            sum(each.refused.total() for each in same),
            sum(each.away.total() for each in same),
            sum(len(each.wrong) for each in same),
            sum(len(each.lost) for each in same),
        )
        played = f"{len(same)}" + (f" ({missing} failed)" if missing else "")
        rows.append((name, played, *(f"{count:,}" for count in counts), longest))
    return rows


def table(results: Sequence[Played]) -> Table:
    """For the terminal."""
    shown = Table(title="Faults: what clients heard, and what was left afterwards")
    for column in _HEADINGS:
        shown.add_column(column, justify="left" if column == "fault" else "right")
    for row in _rows(results):
        shown.add_row(*row)
    return shown


def markdown(results: Sequence[Played], took_seconds: float) -> str:
    """For a page."""
    rows = _rows(results)
    wrong, lost = (sum(len(getattr(each, what)) for each in results) for what in ("wrong", "lost"))
    heard = sum(each.right.total() + each.refused.total() + each.away.total() + len(each.wrong) for each in results)
    failed = sum(bool(each.failed) for each in results)
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {len(rows)} faults, played {len(results)} times in "
        f"{took_seconds / 60:.0f} minutes; {heard:,} questions, **{wrong} wrong, {lost} lost**"
        + (f", {failed} could not be played" if failed else "")
        + f". {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "| --- |" + " ---: |" * (len(_HEADINGS) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join([*lines, ""])
