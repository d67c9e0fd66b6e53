"""The series of a wire: what it counts, brought in when somebody reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from lakthan.web.wire import Wire

_COUNTED = {
    "answered": "Requests that were answered by the short way.",
    "handed_over": "Connections that were handed over to aiohttp, for a request that is not usual.",
    "timed_out": "Connections that were closed because their client was idle or slow.",
    "made_room": "Connections that were closed to make room, those of the source that has most.",
    "turned_away": "New connections and bodies that got 503 because there was no room.",
    "limited": "Requests that were refused because their source had had its share.",
}


class WireMetrics:
    """`prefix`: of the names, `lakthan_ocsp` for one."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        self._wire: Wire | None = None
        self._counters = {
            name: Counter(f"{prefix}_wire_{name}", documentation, registry=registry)
            for name, documentation in _COUNTED.items()
        }
        self._brought_in = dict.fromkeys(_COUNTED, 0)
        self._connections = Gauge(
            f"{prefix}_wire_connections", "Connections that the short way has now.", registry=registry
        )
        self._guests = Gauge(f"{prefix}_wire_guests", "Connections that aiohttp has now.", registry=registry)
        self._held = Gauge(
            f"{prefix}_wire_held_bytes", "What is held of requests that are not whole yet.", registry=registry
        )
        self._limited_sources = Gauge(
            f"{prefix}_wire_limited_sources",
            "Sources that ask for more than their share while there is not enough for all.",
            registry=registry,
        )

    def watch(self, wire: Wire) -> None:
        """Show what it counts."""
        self._wire = wire
        self._connections.set_function(lambda: len(wire.connections))
        self._guests.set_function(lambda: len(wire.guests))
        self._held.set_function(lambda: wire.held)
        self._limited_sources.set_function(lambda: wire.sources.limited)

    def bring_in(self) -> None:
        """The series are about to be read."""
        if self._wire is None:
            return
        for name, counter in self._counters.items():
            count: int = getattr(self._wire, name)
            counter.inc(count - self._brought_in[name])
            self._brought_in[name] = count
