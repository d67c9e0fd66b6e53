"""How much a key outside of this process may have to do at once, and when it is left alone.

Promises, for one key:

- At most `at_once` signatures are under way and `waiting` wait for their turn. Who comes later hears `SignerBusy` at
  once: a queue that nobody lives to see the end of helps nobody.
- After five failures in a row, or when a call that came back to nobody in time sits in every place, the circuit is
  open: every caller hears `SignerUnusable` at once, and one a second tries again. Being busy is no failure.
- What became of every signature is counted. `opened` gives the bounds of all keys of the process, for the metrics.

Refuses to know: how anything is signed. It belongs to one thread, the event loop's.
"""

from __future__ import annotations

import threading
import time
from typing import ClassVar, Literal, get_args
from weakref import WeakSet

from lakthan.errors import SignerBusy, SignerUnusable
from lakthan.telemetry.logs import log

_FAILURES_UNTIL_LEFT_ALONE = 5
_SECONDS_BETWEEN_PROBES = 1.0

Outcome = Literal["signed", "failed", "timed out", "busy", "left alone"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class Bounds:
    """Of one key. `key`: its URI without what stands after the `?`; `name`: how messages call it."""

    _opened: ClassVar[WeakSet[Bounds]] = WeakSet()
    _opening = threading.Lock()

    def __init__(self, key: str, name: str, *, at_once: int, waiting: int) -> None:
        self.key = key
        self._name = name
        self._at_once = at_once
        self._most = at_once + waiting
        self._here = 0
        self._overdue = 0
        self._failures = 0
        self._next_probe = 0.0
        self._last = ""
        self._closed = False
        self.counts: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        with Bounds._opening:  # keys are opened in threads
            Bounds._opened.add(self)

    @classmethod
    def opened(cls) -> list[Bounds]:
        """Those of every key that is open in this process."""
        with cls._opening:
            return list(cls._opened)

    def close(self) -> None:
        """The key is not used any more: whoever asks from now on hears `SignerUnusable`."""
        self._closed = True
        with Bounds._opening:
            Bounds._opened.discard(self)

    @property
    def circuit_open(self) -> bool:
        """Whether the key is left alone."""
        return self._failures >= _FAILURES_UNTIL_LEFT_ALONE or self._overdue >= self._at_once

    @property
    def under_way(self) -> int:
        """Signatures that are being made."""
        return min(self._here, self._at_once)

    @property
    def waiting(self) -> int:
        """Signatures that wait for their turn."""
        return self._here - self.under_way

    def enter(self) -> None:
        """Come in, to wait for a turn; `leave` afterwards. Raises `SignerBusy`, and `SignerUnusable` while the key is
        left alone.
        """
        self._check()
        if self._here >= self._most:
            raise self.busy(f"{self._here} signatures wait for {self._name}")
        self._here += 1

    def leave(self) -> None:
        """The signature is made, or given up."""
        self._here -= 1

    def begin(self) -> bool:
        """It is this caller's turn. Whether he is the one of this second who tries a key that is left alone. Raises
        `SignerUnusable`.
        """
        self._check()
        if self.circuit_open:
            self._next_probe = time.monotonic() + _SECONDS_BETWEEN_PROBES
        return self.circuit_open

    def busy(self, why: str) -> SignerBusy:
        """Count one who is to come again later, and give what he hears."""
        self.counts["busy"] += 1
        return SignerBusy(why)

    def succeeded(self) -> None:
        """There is a signature."""
        if self.circuit_open:
            log.warning("a key signs again", key=self._name)
        self._failures = 0
        self.counts["signed"] += 1

    def failed(self, error: Exception, outcome: Outcome = "failed") -> None:
        """There is none, and it is the key's fault."""
        self.counts[outcome] += 1
        self._blame(error)

    def became_overdue(self, error: Exception) -> None:
        """There is none in time, but its place is still taken."""
        self.counts["timed out"] += 1
        self._overdue += 1
        self._blame(error)

    def overdue_came_back(self) -> None:
        """The place of one that was overdue is free again."""
        self._overdue -= 1

    def leave_alone(self, error: Exception) -> None:
        """Open the circuit, whatever went before."""
        self._failures = _FAILURES_UNTIL_LEFT_ALONE - 1
        self.failed(error)

    def _blame(self, error: Exception) -> None:
        self._failures += 1
        self._last = str(error)
        if self._failures == _FAILURES_UNTIL_LEFT_ALONE:
            self._next_probe = time.monotonic() + _SECONDS_BETWEEN_PROBES
            log.error("a key does not sign and is left alone, but for one try a second", problem=self._last)

    def _check(self) -> None:
        if self._closed:
            raise SignerUnusable(f"{self._name} was let go of, and signs no more")
        # With a lost call in every place there is nobody who could try.
        if self._overdue >= self._at_once or (self.circuit_open and time.monotonic() < self._next_probe):
            self.counts["left alone"] += 1
            raise SignerUnusable(f"{self._name} is away and asked once a second: {self._last}")
