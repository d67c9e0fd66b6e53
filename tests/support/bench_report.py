"""What came out: a table for the terminal, JSON for machines, and a picture (SVG).

Promises: nothing is rounded away in the JSON: every round of every subject is in it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isnan
from pathlib import Path

from rich.table import Table

from support.bench_machine import BenchError
from support.bench_rows import Claim, Row

_PASSED, _MISSED = "#2a7f4f", "#b3372f"
_WIDTH, _LEFT, _BAR, _LINE = 1000, 470, 380, 26
HOW_TO_READ = """\
How to read it. Every figure is the median of its rounds; ± is half of the distance from the lowest to the highest.
"of" is the ratio to the other one, measured in the same round, so that a busy neighbour slows both down: trust the
ratios, not the rates. "CPU µs" is the processor time that the server used for one of them, and "by CPU" the ratio of
these, which a busy neighbour disturbs less, but which sees no waiting. Servers have one core to themselves; wrk and
PostgreSQL share another. "raw" is the signature alone, in a loop, by the library that we use. "content" and "full" are
the two values of self_check (decision 0013). "load off" is the rate divided by the part of its cores that the server
had: all that others used is taken off, what it left idle is not. A measurement with errors is not used, and is
listed."""


@dataclass(frozen=True)
class Result:
    """A claim and what was measured. `value`: the ratio, or the figure itself where there is no reference."""

    row: Row
    claim: Claim
    value: float
    low: float
    high: float
    subject: float
    spread: float
    cpu_micros: float | None
    cpu_ratio: float | None

    @property
    def passed(self) -> bool | None:
        """None when nothing is claimed."""
        if self.claim.bound is None:
            return None
        return self.value <= self.claim.bound if self.claim.at_most else self.value >= self.claim.bound


def results(
    rows: Sequence[Row], measured: Mapping[str, Sequence[float]], cpu_micros: Mapping[str, Sequence[float]]
) -> list[Result]:
    """Every claim of these rows beside its measurements."""
    found = []
    for row in rows:
        for claim in row.claims:
            ours = [value for value in measured[claim.subject] if not isnan(value)]
            values = ours
            if claim.reference is not None:
                # What was measured before a round was complete (for a latency) has no partner.
                pairs = zip(measured[claim.subject], measured[claim.reference], strict=False)
                values = [a / b for a, b in pairs if not isnan(a / b)]
            if not values:  # nothing but failures
                continue
            middle = statistics.median(ours)
            spread = (max(ours) - min(ours)) / 2 / middle if middle else 0.0
            used = cpu_micros.get(claim.subject)
            cpu = statistics.median(used) if used else None
            theirs = cpu_micros.get(claim.reference or "")
            cpu_ratio = statistics.median(theirs) / cpu if theirs and cpu else None
            value, low, high = statistics.median(values), min(values), max(values)
            found.append(Result(row, claim, value, low, high, middle, spread, cpu, cpu_ratio))
    return found


_HEADINGS = ("what", "measured", "CPU µs", "of", "ratio", "lowest – highest", "by CPU", "wanted", "")


def _cells(result: Result) -> tuple[str, ...]:
    """A line of the table, without its verdict."""
    claim = result.claim
    return (
        claim.subject,
        f"{_number(result.subject)}{result.row.unit} ±{result.spread:.0%}",
        "" if result.cpu_micros is None else _number(result.cpu_micros),
        claim.reference or "",
        f"{result.value:.2f}" if claim.reference else "",
        f"{_number(result.low)} – {_number(result.high)}",
        "" if result.cpu_ratio is None else _number(result.cpu_ratio),
        _wanted(claim, result.row),
    )


def table(found: Sequence[Result], rounds: int) -> Table:
    """The table for the terminal."""
    shown = Table(title=f"medians of {rounds} alternating rounds", title_justify="left")
    for heading in _HEADINGS:
        shown.add_column(heading, justify="left" if heading in ("what", "of", "") else "right", no_wrap=True)
    before = None
    for result in found:
        if before is not None and before.row is not result.row:
            shown.add_section()
        verdict = {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}[result.passed]
        shown.add_row(*_cells(result), verdict)
        before = result
    return shown


def markdown(found: Sequence[Result], machine: Mapping[str, str], facts: Mapping[str, object], rounds: int) -> str:
    """The same for a document."""
    lines = [f"Medians of {rounds} alternating rounds.", "", f"| {' | '.join(_HEADINGS[:-1])} | met |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |")
    for result in found:
        verdict = {None: "", True: "yes", False: "**no**"}[result.passed]
        lines.append(f"| {' | '.join(_cells(result))} | {verdict} |")
    lines += ["", *(f"- {what}: {value}" for what, value in machine.items())]
    return "\n".join([*lines, *(f"- {what}: {fact}" for what, fact in facts.items()), ""])


def put_into(document: Path, text: str) -> None:
    """Replace what stands under the heading "The last run"."""
    before, heading, rest = document.read_text(encoding="utf-8").partition("## The last run\n")
    if not heading:
        raise BenchError(f'{document} has no heading "## The last run"')
    _, next_heading, after = rest.partition("\n## ")
    document.write_text(f"{before}{heading}\n{text}{next_heading}{after}", encoding="utf-8")


def _wanted(claim: Claim, row: Row) -> str:
    if claim.bound is None:
        return ""
    sign = "≤" if claim.at_most else "≥"
    return f"{sign} {_number(claim.bound)}{'' if claim.reference else row.unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write_json(
    path: Path,
    found: Sequence[Result],
    measured: Mapping[str, Sequence[float]],
    machine: Mapping[str, str],
    facts: Mapping[str, object],
) -> None:
    """Everything, for another program."""
    document = {
        "machine": dict(machine),
        "measured": {name: list(values) for name, values in measured.items()},
        "facts": dict(facts),
        "claims": [
            {
                "row": result.row.key,
                "title": result.row.title,
                "subject": result.claim.subject,
                "reference": result.claim.reference,
                "median": result.value,
                "lowest": result.low,
                "highest": result.high,
                "subject_median": result.subject,
                "subject_cpu_micros": result.cpu_micros,
                "cpu_ratio": result.cpu_ratio,
                "bound": result.claim.bound,
                "at_most": result.claim.at_most,
                "passed": result.passed,
            }
            for result in found
        ],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_svg(path: Path, found: Sequence[Result], rounds: int) -> None:
    """A bar for every claim: how much of the bound was reached; the line is the bound, the whisker the spread."""
    claimed = [result for result in found if result.claim.bound]
    height = 80 + _LINE * len(claimed)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        "<style>text { font-size: 13px }</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="26">Measured against what is wanted: medians of {rounds} rounds</text>',
    ]
    # Three times as good as wanted is as far as the picture goes.
    scale = _BAR / 3
    for at, result in enumerate(claimed):
        bound = float(result.claim.bound or 1)
        low, middle, high = (
            _goodness(v, bound, at_most=result.claim.at_most) for v in (result.low, result.value, result.high)
        )
        y = 50 + _LINE * at
        colour = _PASSED if result.passed else _MISSED
        name = f"{result.claim.subject} / {result.claim.reference}" if result.claim.reference else result.claim.subject
        left, right = (_LEFT + scale * end for end in sorted((low, high)))
        said = f"{_number(result.value)} ({_wanted(result.claim, result.row)})"
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{y + 3}" width="{scale * middle:.1f}" height="14" fill="{colour}"/>',
            f'<path d="M{left:.1f} {y + 10}H{right:.1f}" stroke="black" stroke-width="2"/>',
            f'<text x="{_LEFT + _BAR + 12}" y="{y + 14}">{escape(said)}</text>',
        ]
    x = _LEFT + scale
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="44" y2="{height - 26}" stroke="black" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">wanted</text></svg>')
    path.write_text("\n".join(parts) + "\n")


def _goodness(value: float, bound: float, *, at_most: bool) -> float:
    """How many times as good as wanted, three at most."""
    if at_most:
        return 3.0 if value <= bound / 3 else bound / value
    return min(3.0, value / bound)
