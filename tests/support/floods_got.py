"""What a flood got, counted where it happens and summed up for the table."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field


@dataclass
class Times:
    """How long answers or refusals of one kind took, in seconds."""

    seconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """In milliseconds; not a number when there was none."""
        ordered = sorted(self.seconds)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 if ordered else float("nan")

    @property
    def shown(self) -> str:
        """For the table."""
        if not self.seconds:
            return ""
        return f"{_time(self.quantile(0.5))}, {_time(self.quantile(0.99))}"


@dataclass
class Got:
    """`asked`: requests that were sent whole; `answered`: with what was asked for; `refused`: by their word, with the
    time from the request (or the connection, where there was none) to the refusal; `gave_up`: requests that the client
    waited for in vain; `not_sent`: those for which it had no connection left. `connections`: made in all; `held`: at
    most at the same time. `capacity`: answers a second before the flood, where that was measured.
    """

    asked: int = 0
    answered: int = 0
    gave_up: int = 0
    not_sent: int = 0
    connections: int = 0
    open: int = 0
    held: int = 0
    capacity: float = 0.0
    seconds: float = 0.0
    refused: dict[str, Times] = field(default_factory=lambda: collections.defaultdict(Times))

    def opened(self) -> None:
        """A connection more."""
        self.connections += 1
        self.open += 1
        self.held = max(self.held, self.open)

    def closed(self) -> None:
        """One less."""
        self.open -= 1

    def refusal(self, word: str, seconds: float) -> None:
        """One."""
        self.refused[word].seconds.append(seconds)

    def plain(self) -> Got:
        """The same, to be sent to another process."""
        self.refused = dict(self.refused)
        return self


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"
