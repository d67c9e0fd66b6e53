"""Simulated time: one clock for everything, and an event loop in which nothing happens but what is due on that clock.

An hour passes in as long as it takes to run what is due within it. The network of a simulation is a part of the loop:
what is sent on a line arrives at an instant, in the order of the line, and events of several lines that are due at the
same moment come in any order, as from `epoll`. A process that stands still (`stand_still`) finds, when it goes on, all
that has arrived meanwhile before any of its own timers, as after a SIGSTOP.

The wall clock may be set apart from the clock that counts on; nothing here reads a real one.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count
from typing import Any
from unittest.mock import patch

import lakthan.store.feed
import lakthan_ocsp.__main__
import lakthan_ocsp.metrics
import lakthan_ocsp.published
import lakthan_ocsp.quick
import lakthan_ocsp.wall_clock

# A day on which the certificates of the tests, which were made a moment ago, are in force.
_BEGIN = int(time.time()) + 60
_BOOTED = 1000.0


class Clock:
    """`seconds` count from 0 and never back. `step`: by how much somebody has set the wall clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.step = 0.0

    def wall(self) -> float:
        """Seconds of the epoch, for `time.time`."""
        return _BEGIN + self.seconds + self.step

    def now(self) -> datetime:
        """The wall clock as an instant."""
        return datetime.fromtimestamp(_BEGIN, UTC) + timedelta(seconds=self.seconds + self.step)

    def since_boot(self, _which: int = 0) -> float:
        """For `time.clock_gettime`."""
        return _BOOTED + self.seconds

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block the responder's modules read this clock wherever they read one that an answer depends on."""
        clock = self

        class SimulatedDatetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                """The simulated instant."""
                return clock.now().astimezone(tz)

        class SimulatedTime:
            CLOCK_BOOTTIME = time.CLOCK_BOOTTIME
            clock_gettime = staticmethod(clock.since_boot)

        with ExitStack() as stack:
            for module, name, value in (
                (lakthan_ocsp.quick, "datetime", SimulatedDatetime),
                (lakthan_ocsp.quick, "time", self.wall),
                (lakthan_ocsp.metrics, "datetime", SimulatedDatetime),
                (lakthan_ocsp.published, "datetime", SimulatedDatetime),
                (lakthan_ocsp.__main__, "datetime", SimulatedDatetime),
                (lakthan_ocsp.__main__, "clock_gettime", self.since_boot),
                (lakthan_ocsp.wall_clock, "clock_gettime", self.since_boot),
                (lakthan_ocsp.wall_clock, "time", self.wall),
                (lakthan.store.feed, "time", SimulatedTime),
            ):
                stack.enter_context(patch.object(module, name, value))
            yield


class Line:
    """One direction of a connection: what is put on it arrives later, in order.

    `stalled`: nothing arrives, nothing is lost, and nobody is told; it arrives after `go_on`. `cut`: nothing will.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._last = 0.0
        self._kept: list[Callable[[], None]] = []
        self.stalled = False
        self.is_cut = False

    def put(self, delay_seconds: float, arrives: Callable[[], None]) -> None:
        """Call `arrives` that much later, never before what was put there earlier."""
        if self.is_cut:
            return
        self._last = max(self._last, self._loop.time() + delay_seconds)
        self._loop.deliver_at(self._last, self, lambda: self._arrived(arrives))

    def _arrived(self, arrives: Callable[[], None]) -> None:
        if self.is_cut:
            return
        if self.stalled:
            self._kept.append(arrives)
        else:
            arrives()

    def go_on(self) -> None:
        """What was kept back arrives, before all that comes later."""
        self.stalled = False
        kept, self._kept = self._kept, []
        for arrives in kept:
            arrives()

    def cut(self) -> None:
        """Nothing more arrives."""
        self.is_cut = True
        self._kept = []


class SimulatedLoop(asyncio.BaseEventLoop):
    """asyncio's own event loop, waiting on simulated lines instead of sockets. `chance`: the order of what is due at
    the same time.
    """

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        super().__init__()
        self.clock = clock
        self._chance = chance
        self._due: list[tuple[float, int, Line, Callable[[], None]]] = []
        self._numbers = count()
        self._selector = self  # what BaseEventLoop waits on
        self.failures: list[str] = []
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        """Simulated seconds."""
        return self.clock.seconds

    def deliver_at(self, instant: float, line: Line, arrives: Callable[[], None]) -> None:
        """For `Line`."""
        heapq.heappush(self._due, (instant, next(self._numbers), line, arrives))

    def select(self, timeout: float | None) -> list[Callable[[], None]]:
        """What a selector does: wait until something arrives, or for that long; here by moving the clock."""
        horizon = self.clock.seconds + (timeout if timeout is not None else 0.0)
        if self._due and self._due[0][0] <= horizon:
            self.clock.seconds = max(self.clock.seconds, self._due[0][0])
        else:
            self.clock.seconds = horizon
        by_line: dict[Line, list[Callable[[], None]]] = {}
        while self._due and self._due[0][0] <= self.clock.seconds:
            _, _, line, arrives = heapq.heappop(self._due)
            by_line.setdefault(line, []).append(arrives)
        lines = list(by_line.values())
        if len(lines) > 1:
            self._chance.shuffle(lines)
        return [arrives for line in lines for arrives in line]

    def _process_events(self, event_list: list[Callable[[], None]]) -> None:
        for arrives in event_list:
            self.call_soon(arrives)

    def _write_to_self(self) -> None:
        """Nobody waits in another thread."""

    def go_on(self, seconds: float) -> None:
        """Run everything that is due within the next `seconds`, to the end of what can be done at that instant."""
        self.call_at(self.clock.seconds + seconds, self.stop)
        self.run_forever()
        self.settle()

    def settle(self) -> None:
        """Run what is ready now."""
        while self._ready:  # type: ignore[attr-defined]
            self.call_soon(self.stop)
            self.run_forever()

    def stand_still(self, seconds: float) -> None:
        """The process is stopped: time passes, and nothing runs."""
        self.clock.seconds += seconds

    def _failed(self, _loop: object, context: dict[str, Any]) -> None:
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")
