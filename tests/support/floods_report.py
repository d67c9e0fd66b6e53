"""What a flood was like, what must not be, and the tables."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from support.floods_crowd import Judged
from support.floods_got import Got, Times
from support.floods_house import LIVE, REMEMBERED, SLOW_KEY
from support.floods_kinds import Flood

# What each service may say to a flood; the rest is wrong. 413: a body that is too large.
_WORDS = {
    "ocsp": {"tryLater", "503", "408", "413", "closed"},
    "tsa": {"429", "503", "408", "413", "closed", "key busy"},
}
MOST_GROWTH = 400 << 20
_KINDS = (REMEMBERED, LIVE, SLOW_KEY)
HONEST = (
    "flood",
    "answered, refused, wrong or nothing",
    *(f"p99 {kind}: alone, busy, flood, settled" for kind in _KINDS),
)
FLOODED = (
    "flood",
    "connections: made, held at most",
    "asked, answered, in vain",
    "refused: how often, median, p99",
    "at the same address: answered; refused, median, p99",
    "memory before, peak, after",
)


@dataclass
class Played:
    """One flood as it went: honest clients alone, beside a busy program, in the flood, and in the flood without its
    first seconds; witnesses at the flood's address. Memory in octets.
    """

    flood: Flood
    alone: Judged
    busy: Judged
    during: Judged
    settled: Judged
    witness: Judged
    got: Got
    memory: tuple[int, int, int]

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        found = []
        for when, judged in (("before", self.alone), ("beside a busy program", self.busy), ("in it", self.during)):
            found += [f"an honest client got {what} ({times}×) {when}" for what, times in judged.wrong.items()]
            found += [
                f"an honest client was refused {when}: {word} ({len(times.seconds)}×)"
                for word, times in judged.refused.items()
            ]
        if not self.during.right:
            found.append("no honest client was answered")
        allowed = set() if self.flood.innocent else _WORDS[self.flood.protocol]
        found += [
            f"the flood was refused by {word}" for word in sorted({*self.got.refused, *self.witness.refused} - allowed)
        ]
        found += [f"the witness got {what} ({times}×)" for what, times in self.witness.wrong.items()]
        if self.memory[1] - self.memory[0] > MOST_GROWTH:
            found.append(f"memory grew by {(self.memory[1] - self.memory[0]) >> 20} MiB")
        return found

    def honest(self) -> list[str]:
        """For the first table."""
        return [
            self.flood.name,
            f"{self.during.right:,}, {self.during.refusals}, {sum(self.during.wrong.values())}",
            *(
                ", ".join(
                    f"{each.answered[kind].quantile(0.99):.0f}"
                    for each in (self.alone, self.busy, self.during, self.settled)
                )
                + " ms"
                if self.during.answered[kind].seconds
                else ""
                for kind in _KINDS
            ),
        ]

    def flooded(self) -> list[str]:
        """For the second table."""
        got = self.got
        asked = f"{got.asked:,}, {got.answered:,}, {got.gave_up:,}" if got.asked else ""
        if got.capacity:
            per_second = got.asked / got.seconds
            asked += f" ({per_second:,.0f} a second, {per_second / got.capacity:.1f} × {got.capacity:,.0f}"
            asked += f"; not sent: {got.not_sent:,})" if got.not_sent else ")"
        return [
            self.flood.name,
            f"{got.connections:,}, {got.held:,}",
            asked,
            _refused(got.refused),
            f"{self.witness.right:,}; {_refused(self.witness.refused)}",
            ", ".join(f"{octets >> 20}" for octets in self.memory) + " MiB",
        ]


def _refused(by_word: Mapping[str, Times]) -> str:
    ordered = sorted(by_word.items(), key=lambda each: -len(each[1].seconds))
    return "; ".join(f"{len(times.seconds):,} {word}, {times.shown}" for word, times in ordered) or "0"


def markdown(results: list[Played], seconds: float) -> str:
    """The tables for a page."""
    clean = sum(not each.problems for each in results)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    text = f"{day}: {clean} of {len(results)} floods without a fault, {seconds:.0f} s each.\n"
    for columns, rows in (
        (HONEST, [each.honest() for each in results]),
        (FLOODED, [each.flooded() for each in results]),
    ):
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        text += "\n" + "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"
    return text
