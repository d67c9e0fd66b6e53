"""Where connections come from, and how much of the live work each source may have while there is not enough for all.

A source is an IPv4 address, or the IPv6 network of 64 bits that one subscriber has to himself. Live work is what must
be looked up, signed or recorded; what is remembered costs nothing worth counting and is never limited.

While the process has time left nobody is limited, however much one source asks: a whole ministry may stand behind one
address. When it has none (its thread wants a processor all the time, or very many wait for the store or a key), the
work that was done is shared out: who asked for less than an equal share gets all of it, the others share the rest
equally (max-min fairness) and hear for what is beyond that that they should come again. A source that is alone is
never limited, as there is nobody to protect from it; nor is a proxy, behind which there are many.

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TICK_SECONDS = 0.25
_BUSY = 0.9  # of a tick
# Answers that are due. More than go into one look-up or commit: who comes last waits for several.
_MANY_DUE = 1024
# Ticks in a row: one is a collection of garbage, or a neighbour on the machine.
_PRESSED_TICKS = 2
_LESS, _MORE = 0.9, 1.1
_LEAST_WORK = 16.0  # in a tick, for all together
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

    __slots__ = ("connections", "most", "proxy", "refused", "work")

    def __init__(self, *, proxy: bool = False) -> None:
        self.connections = 0
        self.work = 0
        self.refused = 0
        self.most = math.inf
        self.proxy = proxy

    def begin(self) -> bool:
        """Live work is to begin: True, and it is counted, if the source may have it."""
        if self.work >= self.most:
            self.refused += 1
            return False
        self.work += 1
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
        self._began = (0.0, 0.0, 0)  # of this tick: by the loop's clock, by the thread's, and `answered` then
        self._pressed_ticks = 0
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
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    def _is_proxy(self, address: str) -> bool:
        if not self._proxies or not address:
            return False
        parsed = ipaddress.ip_address(address)
        if parsed.version == 6 and parsed.ipv4_mapped:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._proxies)

    def _begin_tick(self) -> None:
        self._began = (self._loop.time(), self._thread_seconds(), self._answered())
        self._ticking = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        began, thread_began, answered_before = self._began
        seconds = max(self._loop.time() - began, 1e-3)
        busy = (self._thread_seconds() - thread_began) / seconds > _BUSY
        live = sum(source.work for source in self._by_network.values())
        by_live_work = self._answered() - answered_before <= (1 + _REMEMBERED_TO_LIVE) * live
        pressed = (busy and by_live_work) or self._due() > _MANY_DUE
        self._pressed_ticks = self._pressed_ticks + 1 if pressed else 0
        self.share_out(live * _TICK_SECONDS / seconds)
        for network, source in list(self._by_network.items()):
            source.work = source.refused = 0
            if not source.connections:
                del self._by_network[network]
        if len(self._by_network) > 1:
            self._begin_tick()
        else:
            self._ticking = None

    def share_out(self, live: float) -> None:
        """Say what each source may have in the next tick, after one with so much live work."""
        sources = list(self._by_network.values())
        asking = sorted((each for each in sources if each.work or each.refused), key=_demand)
        if self._pressed_ticks >= _PRESSED_TICKS:
            self._room = max(_LEAST_WORK, min(self._room, live) * _LESS)
        elif self._room < math.inf:
            self._room *= _MORE
        if len(asking) < 2 or self._room > 2 * sum(map(_demand, asking)):
            self._room = math.inf
        for source in sources:
            source.most = math.inf
        self.limited = 0
        left = self._room
        for position, source in enumerate(asking):
            share = left / (len(asking) - position)
            left -= min(_demand(source), share)
            if _demand(source) > share and not source.proxy:
                source.most = share
                self.limited += 1


def _demand(source: Source) -> int:
    return source.work + source.refused
