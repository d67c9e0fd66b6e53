"""What a soak shows: the tables, as text and for the page, and the picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from support.soak_diary import Line
from support.soak_judge import MEBIBYTE, Verdict
from support.soak_samples import CLIENTS

Rows = list[list[str]]
BEGIN, END = "<!-- soak -->", "<!-- end of soak -->"
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#e377c2", "#7f7f7f")
_WIDTH, _LEFT, _RIGHT, _PANEL = 860, 64, 210, 170
_POINTS = 300


def tables(lines: list[Line], verdict: Verdict) -> dict[str, Rows]:
    """By title, the heads first."""
    begin = next(line for line in lines if line["kind"] == "begin")
    return {
        "totals": _totals(lines, verdict),
        "processes": _processes(lines, verdict),
        "latency": _latency(lines, verdict.seconds),
        "processor time": _costs(lines, verdict),
        "rotations": [
            ["what rotated", "seen", "how it is seen"],
            *([what, f"{verdict.rotations[what]:,}", how] for what, how in begin["how"].items()),
        ],
        "events": _events(lines, verdict),
    }


def _totals(lines: list[Line], verdict: Verdict) -> Rows:
    end = next((line for line in lines if line["kind"] == "end"), {})
    about = dict(end.get("totals", {}))
    wrong = sum(line["kind"] == "wrong" for line in lines)
    troubles = sum(line["kind"] == "trouble" for line in lines)
    excused = verdict.excused.total()
    return [
        ["what", "figure"],
        ["minutes", f"{verdict.seconds / 60:.1f}"],
        *([name, f"{value:,}" if isinstance(value, int) else str(value)] for name, value in about.items()),
        ["wrong answers, lost tokens, lost changes", f"{wrong:,}"],
        ["requests that failed while an event lasted", f"{excused:,}"],
        ["requests that failed otherwise", f"{troubles - excused:,}"],
    ]


def _processes(lines: list[Line], verdict: Verdict) -> Rows:
    head = ["process", "memory, middle part", "last part", "growth", "descriptors", "threads", "of a core"]
    rows = [
        [
            growth.name,
            *(f"{part['memory'] / MEBIBYTE:.1f} MiB" for part in (growth.middle, growth.last)),
            f"{growth.by('memory') / MEBIBYTE:+.2f} MiB",
            *(f"{growth.middle[what]:.0f} → {growth.last[what]:.0f}" for what in ("descriptors", "threads")),
            f"{growth.cpu:.1%}",
        ]
        for growth in verdict.growths
    ]
    database = [line for line in lines if line["kind"] == "sample" and line["t"] >= verdict.settled]
    first, last = database[0], database[-1]
    share = (last["database"]["cpu"] - first["database"]["cpu"]) / max(1.0, last["t"] - first["t"])
    sizes = [line["database"]["octets"] / MEBIBYTE for line in database if "octets" in line["database"]]
    if sizes:
        counts = [line["database"]["connections"] for line in database if "connections" in line["database"]]
        grown = f"{sizes[-1] - sizes[0]:+.1f} MiB of data"
        rows.append(
            [
                *("PostgreSQL", f"data {sizes[0]:.0f} MiB", f"{sizes[-1]:.0f} MiB", grown),
                *(f"{counts[0]} → {counts[-1]} connections", "", f"{share:.1%}"),
            ]
        )
    return [head, *rows]


def _latency(lines: list[Line], seconds: float) -> Rows:
    """Medians over the intervals of a third, those with an event left out: a worker that starts is no drift."""
    events = [(line["t"], line["until"]) for line in lines if line["kind"] == "event"]
    parts: dict[str, list[list[dict[str, float]]]] = defaultdict(lambda: [[], []])
    counts: dict[str, int] = defaultdict(int)
    before = 0.0
    for line in lines:
        if line["kind"] != "latency":
            continue
        began, before = before, line["t"]
        quiet = not any(t <= line["t"] and until >= began for t, until in events)
        for name, of in line["of"].items():
            counts[name] += of["count"]
            if quiet and (line["t"] <= seconds / 3 or began >= seconds * 2 / 3):
                parts[name][began >= seconds * 2 / 3].append(of)
    rows = [
        ["requests", "answered", "p50, first third", "last third", "drift", "p99, first third", "last third", "drift"]
    ]
    for name, (first, last) in sorted(parts.items()):
        row = [name, f"{counts[name]:,}"]
        for what in ("p50", "p99"):
            if first and last:
                values = [sorted(each[what] for each in part)[len(part) // 2] for part in (first, last)]
                row += [*(f"{value:.2f} ms" for value in values), f"{values[1] / values[0]:.2f}"]
            else:
                row += ["-", "-", "-"]
        rows.append(row)
    return rows


def _costs(lines: list[Line], verdict: Verdict) -> Rows:
    """What a request costs: what neighbours take from a process makes it late, and not more expensive."""
    half = (verdict.settled + verdict.seconds) / 2
    rows = [["processor time for a request", "middle part", "last part", "drift"]]
    for service in ("ocsp", "tsa"):
        costs = [_cost(lines, service, *part) for part in ((verdict.settled, half), (half, verdict.seconds))]
        if all(costs):
            rows.append(
                [f"{service} workers", *(f"{cost * 1e6:,.0f} µs" for cost in costs), f"{costs[1] / costs[0]:.2f}"]
            )
    return rows


def _cost(lines: list[Line], service: str, begin: float, end: float) -> float:
    """Seconds of a request, in this part of the run; 0 when it cannot be told."""
    part = [line for line in lines if begin <= line["t"] <= end]
    samples = [line["processes"] for line in part if line["kind"] == "sample"]
    if not samples:
        return 0.0
    names = [each for each in samples[0] if each == service or each.startswith(f"{service} worker")]
    spent = sum(samples[-1][each]["cpu"] - samples[0][each]["cpu"] for each in names if each in samples[-1])
    of = [line["of"].items() for line in part if line["kind"] == "latency"]
    asked = sum(each["count"] for items in of for name, each in items if _service_of(name) == service)
    return float(spent / asked) if asked else 0.0


def _service_of(kind: str) -> str:
    return "tsa" if kind.startswith("token") else "registry" if kind.startswith("change") else "ocsp"


def _events(lines: list[Line], verdict: Verdict) -> Rows:
    rows = [["announced event", "at", "took", "all is served again after", "requests failed, of all of its kind"]]
    for line in lines:
        if line["kind"] == "event":
            failed = verdict.excused[line["what"]]
            at = f"{line['t'] / 60:.1f} min" if verdict.seconds > 600 else f"{line['t']:.0f} s"
            rows.append(
                [line["what"], at, f"{line['until'] - line['t']:.1f} s", f"{line['recovered']:.1f} s", f"{failed:,}"]
            )
    return rows


def markdown(lines: list[Line], verdict: Verdict, machine: str) -> str:
    """For the page."""
    text = [machine, ""]
    for rows in tables(lines, verdict).values():
        text += [_row(rows[0]), _row(["---"] * len(rows[0])), *map(_row, rows[1:]), ""]
    if verdict.faults:
        text += ["What should not be:", "", *(f"- {fault}" for fault in verdict.faults), ""]
    return "\n".join(text)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def put_into(page: Path, text: str) -> None:
    """Between the page's marks."""
    old = page.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


# ---- the picture


def write_svg(path: Path, lines: list[Line], verdict: Verdict) -> None:
    """Memory, descriptors and latency over time, with what was announced and what rotated."""
    samples = [line for line in lines if line["kind"] == "sample"]
    latencies = [line for line in lines if line["kind"] == "latency" and line["of"]]
    names = sorted({name for line in samples for name in line["processes"] if name != CLIENTS})
    kinds = sorted({name for line in latencies for name in line["of"]})
    height = 40 + 3 * (_PANEL + 34) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        "<style>text { font-size: 12px } .t { font-weight: bold }</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    panels: list[tuple[str, list[str], list[Line], Callable[[Line, str], float | None]]] = [
        ("memory of its own, MiB", names, samples, lambda line, name: _of(line, name, "memory", MEBIBYTE)),
        ("descriptors", names, samples, lambda line, name: _of(line, name, "descriptors", 1)),
        ("p99, ms (of an interval)", kinds, latencies, lambda line, name: line["of"].get(name, {}).get("p99")),
    ]
    for number, (title, of, where, value) in enumerate(panels):
        parts += _panel(40 + number * (_PANEL + 34), title, _Drawn(of, where, value, verdict.seconds), lines)
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{height - 8}" text-anchor="end">{_span(verdict.seconds)}</text></svg>'
    )
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


class _Drawn:
    """The lines of one panel."""

    def __init__(
        self, names: list[str], where: list[Line], value: Callable[[Line, str], float | None], seconds: float
    ) -> None:
        self.names = names
        self.seconds = seconds
        few = where[:: -(-len(where) // _POINTS) or 1]
        self.values = {
            name: [(line["t"], found) for line in few if (found := value(line, name)) is not None] for name in names
        }
        everything = sorted(found for of in self.values.values() for _, found in of)
        # One odd minute must not press all others flat.
        self.top = max(1.0, everything[int(len(everything) * 0.995)] * 1.1) if everything else 1.0

    def points(self, name: str, top_y: float) -> str:
        """A polyline."""
        wide = _WIDTH - _LEFT - _RIGHT
        return " ".join(
            f"{_LEFT + wide * t / self.seconds:.1f},{top_y + _PANEL * (1 - min(1.0, found / self.top)):.1f}"
            for t, found in self.values[name]
        )


def _of(line: Line, name: str, what: str, unit: float) -> float | None:
    of = line["processes"].get(name)
    return None if of is None else of[what] / unit


def _panel(top_y: int, title: str, drawn: _Drawn, lines: list[Line]) -> list[str]:
    wide, bottom = _WIDTH - _LEFT - _RIGHT, top_y + _PANEL
    parts = [
        f'<text class="t" x="{_LEFT}" y="{top_y - 8}">{title}</text>',
        f'<path d="M{_LEFT} {top_y}V{bottom}H{_LEFT + wide}" fill="none" stroke="black"/>',
        f'<text x="{_LEFT - 6}" y="{top_y + 8}" text-anchor="end">{drawn.top:,.0f}</text>',
        f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
    ]
    for line in lines:
        if line["kind"] == "event":
            x, x2 = (_LEFT + wide * line[edge] / drawn.seconds for edge in ("t", "until"))
            parts.append(
                f'<rect x="{x:.1f}" y="{top_y}" width="{max(1.0, x2 - x):.1f}" height="{_PANEL}" fill="#fdd">'
                f"<title>{line['what']}</title></rect>"
            )
        elif line["kind"] == "rotation" and "signed anew" not in line["what"]:
            x = _LEFT + wide * line["t"] / drawn.seconds
            parts.append(f'<path d="M{x:.1f} {bottom}v5" stroke="gray"><title>{line["what"]}</title></path>')
    for number, name in enumerate(drawn.names):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<polyline points="{drawn.points(name, top_y)}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{_LEFT + wide + 8}" y="{top_y + 10 + 15 * number}" fill="{colour}">{name}</text>')
    return parts


def _span(seconds: float) -> str:
    ticks = "ticks: what rotated; red: announced events"
    return f"{ticks}; {seconds / 60:.0f} minutes" if seconds > 180 else f"{ticks}; {seconds:.0f} s"
