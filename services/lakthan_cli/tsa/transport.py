"""HTTP as a time-stamp client needs it: one POST per token, with patience for an authority that asks for some
(RFC 3161 §3.4).

Promises: an authority that says "too many" (429) or "not now" (503) is asked again after the time that its Retry-After
names, and no sooner; one that closes a connection which was kept open is asked again at once. Whatever else goes wrong
is a `TransportError` with a sentence for people.

Trusted: nobody; what comes back is verified by others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path

import aiohttp
from yarl import URL

from lakthan_cli.exchange import (
    TransportError,
    check_scheme,
    explained,
    http_words,
    media_type_of,
    read,
    refuse_redirect,
)

_QUERY_TYPE = "application/timestamp-query"
_REPLY_TYPE = "application/timestamp-reply"
_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_LONGEST_WAIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `milliseconds`: of the last try alone. `tries`: how often it was asked."""

    media_type: str
    body: bytes
    milliseconds: float
    tries: int

    @property
    def media_type_problem(self) -> str | None:
        """RFC 3161 §3.4, or None."""
        if self.media_type == _REPLY_TYPE:
            return None
        return f"the reply's media type is {self.media_type or 'missing'}, not {_REPLY_TYPE}"


class Transport:
    """Asks over HTTP. `timeout_seconds` is for each try as a whole, `tries` at most. Proxies come from the
    environment.
    """

    def __init__(self, session: aiohttp.ClientSession, timeout_seconds: float, tries: int) -> None:
        self._session = session
        self._timeout_seconds = timeout_seconds
        self._tries = tries
        self._free_ns = 0  # when the authority may be asked again; it said so to one, and means all

    @classmethod
    @asynccontextmanager
    async def open(
        cls, timeout_seconds: float, *, tries: int = 1, jobs: int = 1, bearer: str | None = None
    ) -> AsyncIterator[Transport]:
        """A transport for the length of the block, with as many connections as `jobs`."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "lakthan"}
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            connector=aiohttp.TCPConnector(limit=jobs),
            headers=headers,
            auto_decompress=False,
            trust_env=True,
        ) as session:
            yield cls(session, timeout_seconds, tries)

    async def post(self, url: str, request: bytes) -> Reply:
        """Send a TimeStampReq; the reply to HTTP status 200. Raises `TransportError`."""
        check_scheme(url)
        for tried in range(1, self._tries + 1):
            await asyncio.sleep(max(0, self._free_ns - time.monotonic_ns()) / 1e9)
            last = tried == self._tries
            try:
                found = await self._once(url, request, tried)
            except TransportError as error:
                if not isinstance(error.__cause__, aiohttp.ServerDisconnectedError):
                    raise
                if last:
                    raise TransportError("it closed the connection without a word") from error
                continue
            if isinstance(found, Reply):
                return found
            if last or found > _LONGEST_WAIT_SECONDS:
                raise TransportError(f"it is busy, and wants to be asked again in {found:g} s; {tried} tries made")
            self._free_ns = max(self._free_ns, time.monotonic_ns() + int(found * 1e9))
        raise TransportError("it was not asked: tries must be at least 1")

    async def _once(self, url: str, request: bytes, tried: int) -> Reply | float:
        """The reply, or the seconds to wait before the next try."""
        headers = {"Content-Type": _QUERY_TYPE, "Accept": _REPLY_TYPE}
        started = time.perf_counter()
        with explained(self._timeout_seconds):
            async with self._session.post(
                URL(url, encoded=True), data=request, headers=headers, allow_redirects=False
            ) as reply:
                if reply.status in _AGAIN:
                    return _seconds(reply.headers.get("Retry-After"), tried)
                refuse_redirect(reply)
                body = await read(reply)
                if reply.status != HTTPStatus.OK:
                    raise TransportError(f"the server says {http_words(reply.status)}{_first_line(body)}")
                return Reply(media_type_of(reply), body, round((time.perf_counter() - started) * 1000, 1), tried)


def read_bearer(path: Path) -> str:
    """The API token in a file: its first line. Raises `OSError` and `UnicodeDecodeError`."""
    return path.read_text(encoding="ascii").partition("\n")[0].strip()


def _seconds(retry_after: str | None, tried: int) -> float:
    """How long to wait: Retry-After in seconds or as a date (RFC 9110 §10.2.3), else twice as long every time."""
    if retry_after is not None:
        if retry_after.strip().isdecimal():
            return float(retry_after)
        try:
            instant = parsedate_to_datetime(retry_after)
        except ValueError:
            pass  # neither form: as if it were not there
        else:
            return max(0.0, (instant.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return 0.5 * 2.0**tried


def _first_line(body: bytes) -> str:
    """What a server says besides its status, when that is a line of text."""
    line = body[:300].decode("utf-8", "replace").strip().partition("\n")[0]
    return f": {line}" if line and not line.startswith("<") else ""
