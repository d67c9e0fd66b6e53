"""Where connections come from, and how much of the live work each source may have while there is not enough for all.

A source is an IPv4 address, or the IPv6 network of 64 bits that one subscriber has to himself. Live work is what must
be looked up, signed or recorded; what is remembered costs nothing worth counting and is never limited.

While the process has time left nobody is limited, however much one source asks: a whole ministry may stand behind one
address. When it has none (its thread wants a processor all the time, or most of it and comes to nothing in time, or
very many wait for the store or a key), the
work that was done is shared out: who asked for less than an equal share gets all of it, the others share the rest
equally (max-min fairness) and hear for what is beyond that that they should come again. A source that is alone is
never limited, as there is nobody to protect from it; nor is a proxy, behind which there are many. What a limited
source may have it gets bit by bit, so that it cannot have all of it at once while the others wait.

Nothing is counted for a remembered answer, and nothing looked at while there is one source only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.keys.line import asker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TICK_SECONDS = 0.25
_BUSY = 0.9  # of a tick
_BUSY_AND_LATE = 0.6  # with so many questions at once that the others wait for long
# Answers that are due. More than go into one look-up or commit: who comes last waits for several.
_MANY_DUE = 1024
# Ticks in a row: one is a collection of garbage, or a neighbour on the machine. While there are limits one is enough.
_PRESSED_TICKS = 2
# Who was refused something is held to his share for so many ticks more: who is told to come again later comes again.
_REMEMBERED_TICKS = 8
# A source that is limited gets its share of a tick in so many parts: what one of them begins all others wait for.
_PARTS = 50
# While nobody is limited so many times in a tick it is seen how late the event loop is.
_LOOKS = 10
# By how much of a tick the looks or parts come late, in the mean.
_LATE = 1 / 15
_LESS, _MORE = 0.9, 1.1
_LEAST_WORK = 16.0  # in a tick, for all together
# Nobody is held to fewer in a tick: what takes the time may be something else, such as large bodies, and whoever asks
# little is not the reason.
_LEAST_EACH = 8.0
# A remembered answer takes about a sixth of a live one: with more of them than this, they are what takes the time.
_REMEMBERED_TO_LIVE = 4


# Linux: how long the thread ran, and how long it waited for a processor, in nanoseconds.
_SCHEDULED = Path("/proc/thread-self/schedstat")


def wanted_seconds() -> float:
    """For how long this thread wanted a processor so far, whether it had one or others had it."""
    try:
        ran, waited, _ = _SCHEDULED.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # a kernel that does not count the waiting
        return thread_time()
    return (int(ran) + int(waited)) / 1e9


def network_of(address: str) -> str:
    """Who an address is: itself, or the network of 64 bits that one IPv6 subscriber has to himself."""
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address)
    return str(parsed.ipv4_mapped) if parsed.ipv4_mapped else parsed.packed[:8].hex()


def read_networks(written: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks as the configuration has them. Raises `ConfigError`."""
    try:
        return tuple(ipaddress.ip_network(each) for each in written)
    except ValueError as error:
        raise ConfigError(f"proxies: {error}") from error


class Source:
    """`work` was begun for it in this tick, `refused` what it asked for beyond `most`. `connections`: it has now."""

    __slots__ = ("calm_ticks", "connections", "most", "proxy", "refused", "share", "work")

    def __init__(self, *, proxy: bool = False) -> None:
        self.connections = 0
        self.work = 0
        self.refused = 0
        self.calm_ticks = _REMEMBERED_TICKS  # since it was refused something
        self.most = math.inf
        self.share = math.inf  # of a whole tick; `most` is what it may have had of that by now
        self.proxy = proxy

    def begin(self) -> bool:
        """Live work is to begin: True, and it is counted, if the source may have it."""
        if self.work >= self.most:
            self.refused += 1
            return False
        self.work += 1
        asker.set(self)
        return True


class Sources:
    """Those of one port. `answered` and `due` give how many requests were answered so far, and are being answered.

    `limited` is how many sources are limited now.
    """

    def __init__(
        self,
        *,
        proxies: Iterable[Network] = (),
        answered: Callable[[], int] = lambda: 0,
        due: Callable[[], int] = lambda: 0,
        thread_seconds: Callable[[], float] = wanted_seconds,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._proxies = tuple(proxies)
        self._answered = answered
        self._due = due
        self._thread_seconds = thread_seconds
        self._by_network: dict[str, Source] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._giving: asyncio.TimerHandle | None = None
        # Of this tick: by the loop's clock, by the thread's, and `answered` and `due` then.
        self._began = (0.0, 0.0, 0, 0)
        self._parts = 0  # of this tick that came; fewer when the event loop is late
        self._pressed_ticks = 0
        self._pace = 0.0  # live work that was finished in a tick, at best and not long ago
        self._room = math.inf  # live work in a tick, for all
        self.limited = 0

    def of(self, address: str) -> Source:
        """The source of a new connection from this address ('': it has gone)."""
        network = network_of(address.partition("%")[0])
        source = self._by_network.get(network)
        if source is None:
            source = self._by_network[network] = Source(proxy=self._is_proxy(address))
            if self._ticking is None and len(self._by_network) > 1:
                self._begin_tick()
        return source

    def close(self) -> None:
        """Limit nobody any more."""
        for timer in (self._ticking, self._giving):
            if timer is not None:
                timer.cancel()
        self._ticking = self._giving = None

    def _is_proxy(self, address: str) -> bool:
        if not self._proxies or not address:
            return False
        parsed = ipaddress.ip_address(address)
        if parsed.version == 6 and parsed.ipv4_mapped:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._proxies)

    def _begin_tick(self) -> None:
        self._began = (self._loop.time(), self._thread_seconds(), self._answered(), self._due())
        self._parts = 0
        self._give_soon()
        self._ticking = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        began, thread_began, answered_before, due_before = self._began
        seconds = max(self._loop.time() - began, 1e-3)
        wanted = (self._thread_seconds() - thread_began) / seconds
        late = seconds / (self._parts + 1) > self._part_seconds() + _TICK_SECONDS * _LATE
        busy = wanted > (_BUSY_AND_LATE if late else _BUSY)
        live = sum(source.work for source in self._by_network.values())
        refused = sum(source.refused for source in self._by_network.values())
        by_live_work = self._answered() - answered_before - refused <= (1 + _REMEMBERED_TO_LIVE) * live
        due = self._due()
        pressed = (busy and by_live_work) or due > _MANY_DUE
        self._pressed_ticks = self._pressed_ticks + 1 if pressed else 0
        # What was only begun and waits is no measure of what can be done.
        self.share_out(max(0, live + due_before - due) * _TICK_SECONDS / seconds)
        for network, source in list(self._by_network.items()):
            source.work = source.refused = 0
            if not source.connections:
                del self._by_network[network]
        if self._giving is not None:
            self._giving.cancel()
            self._giving = None
        if len(self._by_network) > 1:
            self._begin_tick()
        else:
            self._ticking = None
        if self.limited:
            for source in self._by_network.values():
                source.share, source.most = source.most, source.most / _PARTS

    def _give(self) -> None:
        """The next part of what each limited source may have."""
        self._parts += 1
        if self.limited:
            for source in self._by_network.values():
                source.most = min(source.most + source.share / _PARTS, source.share)
        self._give_soon()

    def _give_soon(self) -> None:
        self._giving = self._loop.call_later(self._part_seconds(), self._give)

    def _part_seconds(self) -> float:
        return _TICK_SECONDS / (_PARTS if self.limited else _LOOKS)

    def share_out(self, done: float) -> None:
        """Say what each source may have in the next tick, after one in which so much live work was finished."""
        self._pace = max(done, self._pace * _LESS)
        sources = list(self._by_network.values())
        asking = sorted((each for each in sources if each.work or each.refused), key=_demand)
        if self._pressed_ticks >= (_PRESSED_TICKS if self._room == math.inf else 1):
            self._room = max(_LEAST_WORK, self._pace * _LESS)
        elif self._room < math.inf:
            self._room *= _MORE
        for source in sources:
            source.calm_ticks = 0 if source.refused else source.calm_ticks + 1
            source.most = math.inf
        remembered = any(source.calm_ticks < _REMEMBERED_TICKS for source in sources)
        if not remembered and (len(asking) < 2 or self._room > 2 * sum(map(_demand, asking))):
            self._room = math.inf
        self.limited = 0
        if len(asking) < 2 or self._room == math.inf:
            return
        share = max(_LEAST_EACH, _equal_share([_demand(source) for source in asking], self._room))
        for source in sources:
            if not source.proxy and (_demand(source) > share or source.calm_ticks < _REMEMBERED_TICKS):
                source.most = share
                self.limited += 1


def _equal_share(demands: Sequence[int], room: float) -> float:
    """What is left for each of those who want more than that, when the others, smallest first, have what they want."""
    left = room
    for position, demand in enumerate(demands):
        share = left / (len(demands) - position)
        if demand > share:
            return share
        left -= demand
    return left + demands[-1]


def _demand(source: Source) -> int:
    return source.work + source.refused
