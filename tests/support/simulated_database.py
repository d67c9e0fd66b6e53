"""A database for the simulation: the tables that a responder reads, and connections that behave as asyncpg's do.

Why a stand-in where everything else has a rule against them: a simulation asks thousands of times a second what happens
between a commit and a notification, on lines that stall and break at a chosen instant, and no real server can be held
there. What it must get right is small, and `tests/simulation/test_the_model.py` holds it against PostgreSQL:

- which changes are allowed, and the record that each leaves (the trigger of `status_change`);
- a statement sees what was committed when it began, and its reply comes after its work;
- the notifications of a commit come after it becomes visible and before its caller is told, all in order; a session
  that is busy hands them out before the end of its statement is reported; who listens later never gets them;
- equal notifications of one commit are one; a batch of more than a thousand changes is one about the whole authority;
- a first issue notifies nobody.

The statements are the real ones of `lakthan.store`: one that is not known here is a failure.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from lakthan.store import feed, status
from lakthan.store.records import AuthorityRecord, CertStatus, Change, ChangeRequest, CRLReason, StatusRecord
from support.simulated_time import Line, SimulatedLoop

Key = tuple[int, bytes]
MANY = 1000  # more changes of one authority than this in one statement are notified as one
_COMMAND_TIMEOUT_SECONDS = 12.0
_CONNECT_TIMEOUT_SECONDS = 5.0
_REASONS = frozenset(CRLReason) - {CRLReason.CERTIFICATE_HOLD, CRLReason.REMOVE_FROM_CRL}


class Refused(Exception):
    """The trigger would refuse it."""


def changed(old: StatusRecord | None, request: ChangeRequest, version: int, now: datetime) -> StatusRecord | None:
    """The record after a change, None when nothing changes. Raises `Refused`."""
    plain = request.revocation_time is None and request.revocation_reason is None and request.invalidity_date is None
    if request.change in (Change.ISSUE, Change.UNHOLD) and not plain:
        raise Refused
    revocation_time, reason = request.revocation_time, request.revocation_reason
    if request.change in (Change.REVOKE, Change.HOLD):
        revocation_time = (revocation_time or now).replace(microsecond=0)
        if revocation_time > now:
            raise Refused
    if request.change is Change.HOLD:
        if reason not in (None, CRLReason.CERTIFICATE_HOLD):
            raise Refused
        reason = CRLReason.CERTIFICATE_HOLD
    elif request.change is Change.REVOKE and reason is not None and reason not in _REASONS:
        raise Refused
    good = old is not None and old.cert_status is CertStatus.GOOD
    if request.change is Change.ISSUE and old is not None:
        if good and (old.not_after, old.certificate_sha256) == (request.not_after, request.certificate_sha256):
            return None
        raise Refused
    if (
        (request.change is Change.REVOKE and old is not None and not good and not old.held)
        or (request.change is Change.HOLD and not good)
        or (request.change is Change.UNHOLD and (old is None or not old.held))
    ):
        raise Refused
    revoked = request.change in (Change.REVOKE, Change.HOLD)
    return StatusRecord(
        request.authority_id,
        request.serial_number,
        CertStatus.REVOKED if revoked else CertStatus.GOOD,
        revocation_time,
        reason,
        request.invalidity_date,
        request.not_after or (old.not_after if old else None),
        version,
        request.certificate_sha256 or (old.certificate_sha256 if old else None),
    )


@dataclass
class Seen:
    """A value that was on record: committed at `visible`, and confirmed to be over at `over` (None: it is not)."""

    value: Any
    visible: float
    over: float | None = None


class Tables:
    """What is on record, and all that ever was, with its instants. `many`: in the place of `MANY`."""

    def __init__(self, loop: SimulatedLoop, authorities: Sequence[AuthorityRecord], many: int = MANY) -> None:
        self._loop = loop
        self._many = many
        self.versions = 0
        self.certificates: dict[Key, StatusRecord] = {}
        self.authorities = {authority.id: authority for authority in authorities}
        self.history: dict[Key, list[Seen]] = {}
        self.authority_history = {each.id: [Seen(each, 0.0)] for each in authorities}
        self.sessions: list[Session] = []

    def record(self, requests: Sequence[ChangeRequest], wakes: Callable[[], float], confirmed_after: float) -> None:
        """Record changes, all or none, in one statement. Raises `Refused`.

        `wakes`: after how long each session hears of it, less than `confirmed_after`, when the caller is told.
        """
        after: dict[Key, StatusRecord] = {}
        notified: list[StatusRecord] = []
        version = self.versions
        for request in sorted(requests, key=lambda each: (each.authority_id, each.serial_number)):
            key = (request.authority_id, request.serial_number)
            record = changed(after.get(key, self.certificates.get(key)), request, version + 1, self._loop.clock.now())
            if record is not None:
                version += 1
                after[key] = record
                if request.change is not Change.ISSUE:
                    notified.append(record)
        self.versions = version
        at, confirmed = self._loop.time(), self._loop.time() + confirmed_after
        for key, record in after.items():
            self._follows(self.history.setdefault(key, [Seen(None, 0.0)]), record, at, confirmed)
        self.certificates.update(after)
        self._notify(feed.STATUS_CHANNEL, self._payloads(notified), wakes)

    def change_authority(self, authority: AuthorityRecord, wakes: Callable[[], float], confirmed_after: float) -> None:
        """Put another record in the place of an authority's."""
        confirmed = self._loop.time() + confirmed_after
        self._follows(self.authority_history[authority.id], authority, self._loop.time(), confirmed)
        self.authorities[authority.id] = authority
        self._notify(feed.AUTHORITY_CHANNEL, [""], wakes)

    @staticmethod
    def _follows(history: list[Seen], value: object, visible: float, confirmed: float) -> None:
        history[-1].over = confirmed
        history.append(Seen(value, visible))

    def _payloads(self, records: Sequence[StatusRecord]) -> list[str]:
        changed_at = self._loop.clock.now().isoformat()
        payloads = []
        for authority_id in dict.fromkeys(record.authority_id for record in records):
            of_authority = [record for record in records if record.authority_id == authority_id]
            if len(of_authority) > self._many:
                last = of_authority[-1].version
                said = {"authority_id": authority_id, "all": True, "version": last, "changed_at": changed_at}
                payloads.append(json.dumps(said))
            else:
                payloads += [_payload(record, changed_at) for record in of_authority]
        return list(dict.fromkeys(payloads))

    def _notify(self, channel: str, payloads: Sequence[str], wakes: Callable[[], float]) -> None:
        for session in [each for each in self.sessions if channel in each.listens]:
            session.hears_soon(wakes(), [(channel, payload) for payload in payloads])

    def look_up(self, authority_ids: Sequence[int], serial_numbers: Sequence[bytes]) -> list[dict[str, Any]]:
        """The rows of `StatusReader`."""
        found = (self.certificates.get(key) for key in zip(authority_ids, serial_numbers, strict=True))
        return [{**record._asdict(), "cert_status": record.cert_status.value} for record in found if record]

    def authority_rows(self) -> list[dict[str, Any]]:
        """The rows of `AuthorityReader`."""
        rows = []
        for each in self.authorities.values():
            crl = each.crl
            rows.append(
                {
                    **{name: getattr(each, name) for name in ("id", "name", "names", "public_keys", "certificates")},
                    "revocation_time": each.revocation_time,
                    "revocation_reason": each.revocation_reason,
                    "url": crl and crl.url,
                    "crl_number": crl and crl.crl_number,
                    "this_update": crl and crl.this_update,
                    "next_update": crl and crl.next_update,
                }
            )
        return rows


def _payload(record: StatusRecord, changed_at: str) -> str:
    def text(instant: datetime | None) -> str | None:
        return None if instant is None else instant.isoformat()

    fields = record._asdict() | {
        "serial_number": record.serial_number.hex(),
        "cert_status": record.cert_status.value,
        "revocation_time": text(record.revocation_time),
        "invalidity_date": text(record.invalidity_date),
        "not_after": text(record.not_after),
        "certificate_sha256": record.certificate_sha256 and record.certificate_sha256.hex(),
        "changed_at": changed_at,
    }
    return json.dumps(fields)


@dataclass
class Session:
    """The server's process of one connection. `frozen`: it is stopped, and nobody is told."""

    tables: Tables
    loop: SimulatedLoop
    client: Connection
    listens: set[str] = field(default_factory=set)
    frozen: bool = False
    _busy: bool = False
    _heard: list[tuple[str, str]] = field(default_factory=list)
    _work: deque[tuple[str, tuple[Any, ...], int]] = field(default_factory=deque)

    def hears_soon(self, seconds: float, notifications: list[tuple[str, str]]) -> None:
        """The signal of a committer is on its way; it is there before the committer's caller is told."""
        self.loop.call_later(seconds, self._hears, notifications)

    def _hears(self, notifications: list[tuple[str, str]]) -> None:
        self._heard += notifications
        if not self._busy:
            self._tell()

    def asked(self, query: str, arguments: tuple[Any, ...], number: int) -> None:
        """A statement has arrived."""
        self._work.append((query, arguments, number))
        self._next()

    def _next(self) -> None:
        if self._work and not self._busy and not self.frozen:
            self._busy = True
            query, arguments, number = self._work.popleft()
            seen = self._execute(query, arguments)
            self.loop.call_later(self.client.server.work_seconds(), self._done, number, seen)

    def _done(self, number: int, seen: object) -> None:
        self._busy = False
        if self.frozen:
            self._work.appendleft(("", (seen,), number))
            return
        self._tell()
        self.client.send_back(lambda: self.client.replied(number, seen))
        self._next()

    def _tell(self) -> None:
        if not self.frozen:
            heard, self._heard = self._heard, []
            for channel, payload in heard:
                self.client.send_back(partial(self.client.notified, channel, payload))

    def thaw(self) -> None:
        """Go on with what came meanwhile."""
        self.frozen = False
        if not self._busy:
            self._tell()
        self._next()

    def _execute(self, query: str, arguments: tuple[Any, ...]) -> object:
        if query == "":  # the result of a statement that was done when the process was stopped
            return arguments[0]
        if query.startswith("LISTEN "):
            self.listens.add(query.removeprefix("LISTEN "))
            return None
        if query == status._LOOK_UP:
            return self.tables.look_up(*arguments)
        if query == feed._ANNOUNCE:
            return 1
        if query == feed.BEAT:
            return self.loop.clock.now()
        if "FROM authority a LEFT JOIN authority_crl" in query:
            return self.tables.authority_rows()
        raise AssertionError(f"the simulated database does not know this statement: {query}")


@dataclass
class Server:
    """The database server and the network before it. `latency`: seconds, each way and anew for each message; `work`:
    of a statement. `refuses`: new connections; `silent`: they are neither accepted nor refused.
    """

    tables: Tables
    loop: SimulatedLoop
    latency_seconds: Callable[[], float]
    work_seconds: Callable[[], float]
    refuses: bool = False
    silent: bool = False
    connections: list[Connection] = field(default_factory=list)

    async def connect(self, *_: object, **__: object) -> Connection:
        """A new connection, as `lakthan.store.pool.connect` gives it."""
        if self.silent:
            await asyncio.sleep(_CONNECT_TIMEOUT_SECONDS)
            raise TimeoutError
        await asyncio.sleep(2 * self.latency_seconds())
        if self.refuses:
            raise ConnectionRefusedError
        connection = Connection(self)
        self.connections.append(connection)
        self.tables.sessions.append(connection.session)
        return connection

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.tables.sessions.remove(connection.session)

    @property
    def listening(self) -> list[Connection]:
        """The connections of change feeds."""
        return [each for each in self.connections if each.session.listens]


class Connection:
    """What the store uses of an `asyncpg.Connection`. Notifications are given out in a call of their own, before the
    reply that came behind them.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.session = Session(server.tables, server.loop, self)
        self.there, self.back = Line(server.loop), Line(server.loop)
        self._listeners: dict[str, Callable[[object, int, str, object], None]] = {}
        self._when_closed: list[Callable[[object], None]] = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self.closed = False

    def send_back(self, arrives: Callable[[], None]) -> None:
        """For the session: one message to the client."""
        self.back.put(self.server.latency_seconds(), arrives)

    def replied(self, number: int, seen: object) -> None:
        """A statement's end has arrived."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(seen)

    def notified(self, channel: str, payload: str) -> None:
        """A notification has arrived."""
        if channel in self._listeners:
            self.server.loop.call_soon(self._listeners[channel], self, 1, channel, payload)

    async def _ask(self, query: str, *arguments: object) -> Any:  # noqa: ANN401 - as asyncpg's
        if self.closed:
            raise ConnectionResetError("connection is closed")
        assert not self._waiting, "asyncpg does one operation at a time"
        self._number += 1
        number = self._number
        waiting = self._waiting[number] = self.server.loop.create_future()
        self.there.put(self.server.latency_seconds(), lambda: self.session.asked(query, arguments, number))
        try:
            async with asyncio.timeout(_COMMAND_TIMEOUT_SECONDS):
                return await waiting
        except (TimeoutError, asyncio.CancelledError):
            self.terminate()  # asyncpg asks the server to cancel, which takes as long as the connection has left
            raise

    async def fetch(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Rows."""
        rows: list[dict[str, Any]] = await self._ask(query, *arguments)
        return rows

    async def fetchval(self, query: str, *arguments: object) -> object:
        """One value."""
        return await self._ask(query, *arguments)

    execute = fetchval

    async def add_listener(self, channel: str, callback: Callable[[object, int, str, object], None]) -> None:
        """LISTEN."""
        self._listeners[channel] = callback
        await self._ask(f"LISTEN {channel}")

    def add_termination_listener(self, callback: Callable[[object], None]) -> None:
        """Called when the connection is closed."""
        self._when_closed.append(callback)

    def remove_termination_listener(self, callback: Callable[[object], None]) -> None:
        """No more."""
        if callback in self._when_closed:
            self._when_closed.remove(callback)

    def terminate(self) -> None:
        """Close without a word."""
        if not self.closed:
            self.closed = True
            self.there.cut()
            self.back.cut()
            self.server.forget(self)
            for callback in self._when_closed:
                self.server.loop.call_soon(callback, self)
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("connection was closed in the middle of operation"))
            self._waiting = {}
            self._listeners = {}

    # What may happen to it.

    def stall(self) -> None:
        """The line goes silent; nobody is told."""
        self.there.stalled = self.back.stalled = True

    def heal(self) -> None:
        """The line is there again, with all that was on its way."""
        self.there.go_on()
        self.back.go_on()
        self.session.thaw()


class Pool:
    """What the store uses of an `asyncpg.Pool`."""

    def __init__(self, server: Server, size: int) -> None:
        self._server = server
        self._free = asyncio.Semaphore(size)
        self._size = size
        self._idle: list[Connection] = []

    def get_max_size(self) -> int:
        """As given."""
        return self._size

    @asynccontextmanager
    async def _acquire(self) -> Any:  # noqa: ANN401 - an async iterator of connections
        async with self._free:
            connection = None
            while self._idle and (connection is None or connection.closed):
                connection = self._idle.pop()
            if connection is None or connection.closed:
                connection = await self._server.connect()
            try:
                yield connection
            finally:
                if not connection.closed:
                    self._idle.append(connection)

    def acquire(self) -> Any:  # noqa: ANN401 - as asyncpg's
        """A connection for a while."""
        return self._acquire()

    async def fetch(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Rows, on any connection."""
        async with self._acquire() as connection:
            rows: list[dict[str, Any]] = await connection.fetch(query, *arguments)
            return rows


def revoked_whole(authority: AuthorityRecord, now: datetime) -> AuthorityRecord:
    """The authority, with its own certificate revoked."""
    return replace(authority, revocation_time=now.replace(microsecond=0), revocation_reason=CRLReason.CA_COMPROMISE)
