"""Room for connections: how many there may be, whose go when there are more, and those that aiohttp has.

A connection costs memory and a file descriptor whether it asks anything or not. When there is no room left, the source
that has the most connections makes some: those of it that have been silent, or in the middle of a request, for longest.
Never one whose answer is due, and never one of a source that has fewer than the newcomer's. So who opens ten thousand
pays for them alone. One source may have as many as there is room but for a thirty-second part, into which only those
come that have less than half of all: when the answers on all the others are due, none of them can make room.

Refuses to know: what is said on a connection.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Protocol

from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from lakthan.web.sources import Source

MOST_CONNECTIONS = 4096
# For the database, keys, logs and the admin port.
_OTHER_DESCRIPTORS = 256
# Of all there may be, so many go at once: to look for them takes time.
_GO_TOGETHER = 64
_KEPT_FOR_OTHERS = 32


class Occupant(Protocol):
    """A connection that takes up room."""

    @property
    def source(self) -> Source:
        """Where it comes from."""

    @property
    def silent_since(self) -> float | None:
        """When it was last answered or begun, by the loop's clock; None while an answer is due."""

    def end(self) -> None:
        """Close it now."""


class Guest:
    """A connection that aiohttp has. `asked`: it has brought a whole request; `busy`: one is being answered."""

    __slots__ = ("_limited", "_transport", "asked", "busy", "since", "source")

    def __init__(self, transport: asyncio.Transport, source: Source, now: float, limited: Callable[[], None]) -> None:
        self._transport = transport
        self._limited = limited
        self.source = source
        self.since = now
        self.asked = False
        self.busy = False

    @property
    def silent_since(self) -> float | None:
        """See `Occupant`."""
        return None if self.busy else self.since

    @property
    def gone(self) -> bool:
        """True once it is closed."""
        return self._transport.is_closing()

    def may_work(self) -> bool:
        """Whether its source may have live work done now; a refusal is counted."""
        if self.source.begin():
            return True
        self._limited()
        return False

    def overdue(self, begun_before: float) -> bool:
        """True for one whose first request takes too long to become whole; the rest is aiohttp's keep-alive."""
        return not self.asked and self.since < begun_before

    def end(self) -> None:
        """See `Occupant`."""
        self._transport.abort()


def descriptors_for(connections: int) -> int:
    """How many connections there may be of those wanted: the limit of open files is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_DESCRIPTORS
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= wanted:
        return connections
    possible = max(soft - _OTHER_DESCRIPTORS, soft // 2)
    log.warning("fewer connections than configured: the limit of open files is low", wanted=connections, most=possible)
    return possible


def kept_for_others(most: int) -> int:
    """So much of the room is not for a source that has more than half of all connections."""
    return most // _KEPT_FOR_OTHERS


def to_make_room(occupants: Iterable[Occupant], newcomer: Source, most: int) -> list[Occupant]:
    """Those that go, so that a newcomer of that source may come in; none when there are none that may."""
    by_source: dict[Source, list[tuple[float, Occupant]]] = {}
    for occupant in occupants:
        since = occupant.silent_since
        if since is not None:
            by_source.setdefault(occupant.source, []).append((since, occupant))
    for source in sorted(by_source, key=lambda each: each.connections, reverse=True):
        if source.connections < newcomer.connections:
            break
        silent = sorted(by_source[source], key=lambda each: each[0])
        return [occupant for _, occupant in silent[: max(1, most // _GO_TOGETHER)]]
    return []
