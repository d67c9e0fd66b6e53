"""What was answered in this second of the clock, found again by the whole octets of its request, head and all.

Most requests are like one that came a moment ago: the same client software asks about the same certificate. Such a
request need not be taken apart, nor its answer put together: `Date` is the same for a second, and so are `max-age` and
everything else. An answer that is forgotten meanwhile (`Answer.until`) is not given again, whatever is kept here.

Bounded in octets; when it is full, what comes next goes the usual way until the second is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lakthan_ocsp.cache import Answer
    from lakthan_ocsp.metrics import Tally

_MOST_OCTETS = 8 << 20
# What CPython needs beside the octets of a request and a response, about.
_OCTETS_OF_ENTRY = 400


class Said(NamedTuple):
    """The whole response, whose answer it is, and where it is counted."""

    answer: Answer
    response: bytes
    tally: Tally


class ThisSecond:
    """The table. `by_request` is to be used from `begins` to before `ends`, in seconds of the epoch."""

    __slots__ = ("_room", "begins", "by_request", "ends")

    def __init__(self) -> None:
        self.begins = 0.0
        self.ends = 0.0
        self.by_request: dict[bytes, Said] = {}
        self._room = 0

    def note(self, request: bytes, said: Said, now_seconds: float) -> None:
        """Keep a response that is given now, if it can be given all through this second."""
        if not self.begins <= now_seconds < self.ends:
            self.begins = float(int(now_seconds))
            self.ends = self.begins + 1.0
            self.by_request.clear()
            self._room = _MOST_OCTETS
        octets = len(request) + len(said.response) + _OCTETS_OF_ENTRY
        if octets <= self._room and said.answer.since <= self.begins and self.ends <= said.answer.head_until:
            self._room -= octets
            self.by_request[request] = said
