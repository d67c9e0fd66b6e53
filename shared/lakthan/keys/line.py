"""The line of those who wait for a key: everybody who asks gets his turn, however many others stand in it for one.

Who asks is what `asker` says where the work began: for a request, the source that it came from. Each asker's own stand
in the order in which they came, and the askers take turns. So ten thousand questions from one address cost the next
address one signature's time, not ten thousand.

Promises: `Line` is safe to be used by several threads, and the ends that `close` puts into it come out after everything
else. `Turns` is the same order for one thread.
"""

from __future__ import annotations

import threading
from collections import deque
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Generic, TypeVar

Waiting = TypeVar("Waiting")

# Work that nobody asked for from outside shares one turn.
asker: ContextVar[object] = ContextVar("asker", default=None)


class Turns(Generic[Waiting]):
    """The order of a line, for one thread."""

    def __init__(self) -> None:
        self._by_asker: dict[object, deque[Waiting]] = {}
        self._length = 0

    def put(self, who: object, waiting: Waiting) -> None:
        """To the end of what this asker has in the line."""
        self._by_asker.setdefault(who, deque()).append(waiting)
        self._length += 1

    def put_back(self, waiting: Waiting) -> None:
        """It is next."""
        own = object()  # a turn of its own
        self._by_asker = {own: deque([waiting]), **self._by_asker}
        self._length += 1

    def take(self) -> Waiting:
        """The next. Raises `StopIteration` when nobody waits."""
        who, own = next(iter(self._by_asker.items()))
        del self._by_asker[who]
        first = own.popleft()
        if own:
            self._by_asker[who] = own  # behind the others
        self._length -= 1
        return first

    def __len__(self) -> int:
        """How many wait."""
        return self._length

    def is_longest(self, who: object) -> bool:
        """True when this asker has as many in the line as the mean of all, or more."""
        return len(self._by_asker.get(who, ())) * len(self._by_asker) >= self._length


class Line(Generic[Waiting]):
    """Put in by the event loop, taken out by threads."""

    def __init__(self) -> None:
        self._somebody: SimpleQueue[None] = SimpleQueue()  # one for each that waits, and each end
        self._lock = threading.Lock()
        self._turns: Turns[Waiting] = Turns()

    def put(self, waiting: Waiting) -> None:
        """To the end of what its asker has in the line."""
        who = asker.get()
        with self._lock:
            self._turns.put(who, waiting)
        self._somebody.put(None)

    def put_back(self, waiting: Waiting) -> None:
        """What was taken out is for another thread: it is next."""
        with self._lock:
            self._turns.put_back(waiting)
        self._somebody.put(None)

    def get(self) -> Waiting | None:
        """The next, when there is one; None: the end."""
        self._somebody.get()
        return self._next()

    def get_nowait(self) -> Waiting | None:
        """The same without waiting. Raises `queue.Empty`."""
        self._somebody.get_nowait()
        return self._next()

    def end(self) -> None:
        """For one thread: after everything that waits there comes no more."""
        self._somebody.put(None)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._turns)

    def is_longest(self) -> bool:
        """True when who asks now has as many in the line as the mean of all askers, or more."""
        with self._lock:
            return self._turns.is_longest(asker.get())

    def _next(self) -> Waiting | None:
        with self._lock:
            return self._turns.take() if self._turns else None
