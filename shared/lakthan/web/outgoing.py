"""Responses that leave together: those that were made in one turn of the event loop.

To send wakes the client. On the same machine the kernel does that by an interrupt to another core, for a tenth of what
a signed answer costs; so a client that waits for several answers is woken once for all of them. The first one waits
for the others, and not for long.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

# How long the first of them waits for the others.
_GATHERED_SECONDS = 0.0005


class Outgoing:
    """The responses of all connections of a port that have not left yet (`waiting`), in their order."""

    __slots__ = ("_first_waits_until", "_loop", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._first_waits_until = 0.0
        self.waiting: list[tuple[asyncio.Transport, bytes]] = []

    def send_soon(self, transport: asyncio.Transport, response: bytes) -> None:
        """Send a response in this turn of the event loop, together with others."""
        waiting = self.waiting
        waiting.append((transport, response))
        if len(waiting) == 1:
            self._first_waits_until = perf_counter() + _GATHERED_SECONDS
            self._loop.call_soon(self.send_now)
        elif perf_counter() > self._first_waits_until:
            self.send_now()

    def send_now(self) -> None:
        """Send what waits; a client that has gone meanwhile does not get it."""
        waiting, self.waiting = self.waiting, []
        for transport, response in waiting:
            if not transport.is_closing():
                transport.write(response)
