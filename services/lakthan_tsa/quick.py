"""The short way of a request: from the wire's octets to the wire's octets, without task, request object or headers.

A profile that serves everybody is served here; where credentials are asked for, aiohttp reads the request. A token of a
key in this process needs no task (`TSAService.begin`) and leaves after the commit; for everything else a task waits.
What is said is `app.Words` either way; here it is only put into octets, the same that aiohttp would write.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lakthan.store.tokens import TSUFrozen
from lakthan.telemetry.request_log import request_log
from lakthan.web.response_heads import date_and_server, response_head
from lakthan.web.sources import network_of
from lakthan.web.wire import LATER, Connection, Head
from lakthan_tsa.app import (
    LARGEST_BODY,
    REPLY,
    SHARE_USED_UP,
    is_authenticode,
    is_something_else,
    media_type_of,
)
from lakthan_tsa.in_hand import NotTogether

if TYPE_CHECKING:
    from lakthan_tsa.app import Gate, Gates, Words
    from lakthan_tsa.metrics import TSAMetrics
    from lakthan_tsa.profiles import Profile

_FIELDS = "".join(f"{name}: {value}\r\n" for name, value in REPLY.items()).encode("ascii")
_BEFORE_LENGTH = response_head(b"200 OK", _FIELDS, 0).removesuffix(b"0\r\n")

_TOO_MANY = response_head(
    b"429 Too Many Requests",
    b"Cache-Control: no-store\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\n",
    len(SHARE_USED_UP),
)


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a head leads to."""

    gate: Gate
    media_type: str


class Short:
    """The `Quick` of the authority."""

    largest_body = LARGEST_BODY

    def __init__(self, words: Words, gates: Gates, metrics: TSAMetrics) -> None:
        self._words = words
        self._begin = words.service.begin
        self._gates = gates
        self._granted = metrics.granted
        self._took = metrics.slow.took
        self._too_many = metrics.http_refusals.labels("429")
        self._tasks: set[asyncio.Task[None]] = set()

    def route(self, head: Head) -> object | None:
        """See `Quick`."""
        gate = self._gates.find(head.target.decode("ascii"))
        media_type = media_type_of(head.fields.get(b"content-type", b"").decode("ascii"))
        if gate is None or gate.credentials is not None or is_something_else(media_type):
            return None
        return _Route(gate, media_type)

    def post(self, route: object, body: bytes, connection: Connection) -> bytes | None:
        """See `Quick`."""
        if not isinstance(route, _Route) or is_authenticode(body, route.media_type):
            return None
        started = time.perf_counter()
        gate = route.gate
        # Who has to wait is told so by aiohttp's edge; asking costs nothing then.
        if gate.quota is not None and gate.quota.take(network_of(connection.peer), time.monotonic()) > 0:
            return None
        if not connection.may_work():
            self._too_many.inc()
            return b"".join((_TOO_MANY, date_and_server(), SHARE_USED_UP.encode("ascii")))
        profile = gate.profile
        try:
            begun = self._begin(body, profile, partial(self._told, connection, body, profile, started))
        except Exception as error:  # noqa: BLE001 - `refuse` has a word for each, and a log line for a defect
            refused = _octets(self._words.refuse(error))
            self._took(time.perf_counter() - started, profile=profile.name)
            return refused
        if not begun:
            self._wait(connection, body, profile, started)
        return LATER

    def get(self, target: bytes, connection: Connection) -> bytes | None:  # noqa: ARG002 - see `Quick`
        """See `Quick`. There is nothing to get, and aiohttp's edge says so."""
        return None

    def _told(
        self, connection: Connection, body: bytes, profile: Profile, started: float, response: bytes | Exception
    ) -> None:
        """The commit is done."""
        if isinstance(response, TSUFrozen | NotTogether):  # perhaps another unit may stamp, or somebody can wait
            self._wait(connection, body, profile, started)
            return
        if isinstance(response, bytes):
            self._granted.count += 1
            if request_log.due():
                request_log.note(outcome="granted", profile=profile.name)
            connection.reply(_octets(response))
        else:
            connection.reply(_octets(self._words.refuse(response)))
        self._took(time.perf_counter() - started, profile=profile.name)

    def _wait(self, connection: Connection, body: bytes, profile: Profile, started: float) -> None:
        task = asyncio.get_running_loop().create_task(self._later(connection, body, profile, started))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _later(self, connection: Connection, body: bytes, profile: Profile, started: float) -> None:
        connection.reply(_octets(await self._words.reply(body, profile)))
        self._took(time.perf_counter() - started, profile=profile.name)


def _octets(response: bytes) -> bytes:
    return b"".join((_BEFORE_LENGTH, b"%d\r\n" % len(response), date_and_server(), response))
