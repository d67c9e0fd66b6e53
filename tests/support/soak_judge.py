"""What is well and what is not, from a soak's diary alone.

Leaks are looked for in the last two thirds, and not before the last announced event is over, because until then caches
fill, code is met for the first time and workers are replaced. The rest is halved: of each process the median of the
last part is compared with that of the middle one. Medians, because a process that signs or collects garbage just now
has more for a moment.

The bound of memory: a process may have grown by `MEMORY_PER_HOUR` times the time between the middles of these parts, or
by `MEMORY_FLOOR`, whichever is more. Why it may grow at all: a responder remembers every revocation that it was told
(some 300 octets, 50,000 at most), the registry's CRLs and connections come and go in other sizes each time, and the
allocator gives pages back in units of a mebibyte. Why not more: at 200 requests a second for two workers, 6 MiB an hour
are 17 octets a request.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from support.soak_diary import Line
from support.soak_samples import CLIENTS

MEBIBYTE = 1 << 20
MEMORY_PER_HOUR = 6 * MEBIBYTE
MEMORY_FLOOR = 2 * MEBIBYTE
# Of a short run: it still meets things for the first time.
MEMORY_FLOOR_SHORT, SERIES_SHORT = 16 * MEBIBYTE, 100
SHORT_SECONDS = 900.0
# Connections of clients end and begin; a leak of one a rotation would be eight.
DESCRIPTORS, THREADS, CONNECTIONS, SERIES = 3, 1, 2, 10


@dataclass
class Growth:
    """Of one process: medians of the middle and of the last part, and `cpu`, the share of a core in both together."""

    name: str
    middle: dict[str, float]
    last: dict[str, float]
    cpu: float

    def by(self, what: str) -> float:
        """How much it grew."""
        return self.last[what] - self.middle[what]


@dataclass
class Verdict:
    """`faults`: what should not be; none when all is well. `settled`: where the middle part begins, in seconds."""

    seconds: float
    settled: float
    allowed_memory: float
    growths: list[Growth] = field(default_factory=list)
    rotations: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def judge(lines: list[Line]) -> Verdict:
    """The verdict on a diary."""
    begin = next(line for line in lines if line["kind"] == "begin")
    # What comes after the last look is the services' stop and the comparison with the record.
    seconds = max(line["t"] for line in lines if line["kind"] == "sample")
    short = seconds < SHORT_SECONDS
    floor = MEMORY_FLOOR_SHORT if short else MEMORY_FLOOR
    settled = max([seconds / 3, *(line["until"] for line in lines if line["kind"] == "event")])
    verdict = Verdict(seconds, settled, max(floor, MEMORY_PER_HOUR * (seconds - settled) / 2 / 3600))
    verdict.faults += [line["words"] for line in lines if line["kind"] == "wrong"]
    if not any(line["kind"] == "end" for line in lines):
        verdict.faults.append("the run was broken off")
    _look_at_troubles(lines, verdict)
    for line in lines:
        if line["kind"] == "rotation":
            verdict.rotations[line["what"]] += line["times"]
    for what, times in begin["rotations"].items():
        if verdict.rotations[what] < times:
            verdict.faults.append(f"rotation: {what}: seen {verdict.rotations[what]} times of {times}")
    verdict.growths = growths(lines, verdict)
    there: dict[str, Any] = next((line["processes"] for line in reversed(lines) if line["kind"] == "sample"), {})
    for name in there.keys() - {growth.name for growth in verdict.growths}:
        verdict.faults.append(f"{name}: not one process since all was settled, so nothing is shown of it")
    for growth in verdict.growths:
        if growth.name != CLIENTS:
            _look_at_growth(growth, verdict)
    for what, count, bound in (
        ("connections to the database", _connections, CONNECTIONS),
        ("series of all /metrics", _series, SERIES_SHORT if short else SERIES),
    ):
        middle, last = _parts(((line["t"], count(line)) for line in lines), verdict)
        if not middle or not last:
            verdict.faults.append(f"{what}: not measured")
        elif statistics.median(last) - statistics.median(middle) > bound:
            verdict.faults.append(f"{what} grew from {statistics.median(middle):.0f} to {statistics.median(last):.0f}")
    return verdict


def growths(lines: list[Line], verdict: Verdict) -> list[Growth]:
    """Of every process that was there all the time since all was settled."""
    found = []
    samples = [line for line in lines if line["kind"] == "sample" and line["t"] >= verdict.settled]
    names = sorted({name for line in samples for name in line["processes"]})
    for name in names:
        of = [(line["t"], line["processes"][name]) for line in samples if name in line["processes"]]
        if len({each["pid"] for _, each in of}) != 1 or len(of) < len(samples):
            continue
        medians = [
            {what: statistics.median(each[what] for each in part) for what in part[0]} if part else {}
            for part in _parts(of, verdict)
        ]
        if all(medians):
            cpu = (of[-1][1]["cpu"] - of[0][1]["cpu"]) / (of[-1][0] - of[0][0])
            found.append(Growth(name, medians[0], medians[1], cpu))
    return found


def _parts(values: Iterable[tuple[float, Any]], verdict: Verdict) -> tuple[list[Any], list[Any]]:
    """What there is of the middle and of the last part."""
    half = (verdict.settled + verdict.seconds) / 2
    there = [(t, value) for t, value in values if value is not None and t >= verdict.settled]
    return [value for t, value in there if t < half], [value for t, value in there if t >= half]


def _connections(line: Line) -> int | None:
    return line["database"].get("connections") if line["kind"] == "sample" else None


def _series(line: Line) -> int | None:
    return sum(line["series"].values()) if line["kind"] == "scrape" else None


def _look_at_growth(growth: Growth, verdict: Verdict) -> None:
    name = growth.name
    if growth.by("memory") > verdict.allowed_memory:
        verdict.faults.append(
            f"{name}: {growth.by('memory') / MEBIBYTE:.1f} MiB more in the last part than in the middle one, "
            f"{verdict.allowed_memory / MEBIBYTE:.1f} are allowed"
        )
    for what, bound in (("descriptors", DESCRIPTORS), ("threads", THREADS)):
        if growth.by(what) > bound:
            verdict.faults.append(f"{name}: {what} grew from {growth.middle[what]:.0f} to {growth.last[what]:.0f}")


def _look_at_troubles(lines: list[Line], verdict: Verdict) -> None:
    events = [line for line in lines if line["kind"] == "event"]
    left: Counter[str] = Counter()
    for line in lines:
        if line["kind"] != "trouble":
            continue
        excuse = next((each["what"] for each in events if _excuses(each, line)), "")
        if excuse:
            verdict.excused[excuse] += 1
        else:
            left[f"{line['of']}: {line['words']}"] += 1
    verdict.faults += [f"{times} times without an announced event: {words}" for words, times in left.most_common(10)]


def _excuses(event: Line, trouble: Line) -> bool:
    """Whether what went wrong was under way while the event lasted."""
    allowed = trouble["of"] != "operator" and ("*" in event["allows"] or trouble["of"] in event["allows"])
    return bool(allowed and event["t"] <= trouble["t"] and trouble["sent"] <= event["until"])
