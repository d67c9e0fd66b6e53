"""HTTP as an OCSP client needs it: plain requests with a deadline and a bound on what is read (RFC 6960 appendix A).

Promises: whatever goes wrong on the way is a `TransportError` with a sentence for people.

Trusted: nobody; what comes back is verified by others.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote

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

_REQUEST_TYPE = "application/ocsp-request"
_RESPONSE_TYPE = "application/ocsp-response"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `milliseconds`: from the start of the request to the last octet."""

    http_status: int
    media_type: str
    body: bytes
    milliseconds: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def media_type_problem(self) -> str | None:
        """RFC 6960 appendix A.2, or None."""
        if self.media_type == _RESPONSE_TYPE:
            return None
        return f"the answer's media type is {self.media_type or 'missing'}, not {_RESPONSE_TYPE}"


class Transport:
    """Asks over HTTP. `timeout_seconds` is for each request as a whole. The environment's proxies are used."""

    def __init__(self, session: aiohttp.ClientSession, timeout_seconds: float) -> None:
        self._session = session
        self._timeout_seconds = timeout_seconds

    @classmethod
    @asynccontextmanager
    async def open(cls, timeout_seconds: float) -> AsyncIterator[Transport]:
        """A transport for the length of the block."""
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        # What is asked for is small and signed: a content coding would only be a way to send a bomb.
        headers = {"Accept-Encoding": "identity", "User-Agent": "lakthan"}
        async with aiohttp.ClientSession(
            timeout=timeout, headers=headers, auto_decompress=False, trust_env=True
        ) as session:
            yield cls(session, timeout_seconds)

    async def post(self, url: str, request: bytes, *, media_type: str | None = _REQUEST_TYPE) -> Reply:
        """Send an OCSPRequest by POST. `media_type`: None to send none at all. Raises `TransportError`."""
        headers = {"Accept": _RESPONSE_TYPE} | ({} if media_type is None else {"Content-Type": media_type})
        return await self._exchange("POST", url, headers, request)

    async def get(self, url: str, request: bytes) -> Reply:
        """Send an OCSPRequest by GET, in the path. Raises `TransportError`."""
        return await self.get_spelled(f"{url.rstrip('/')}/{quote(base64.b64encode(request).decode(), safe='')}")

    async def get_spelled(self, url: str) -> Reply:
        """GET a URL that has the OCSPRequest in it already, as it is spelled. Raises `TransportError`."""
        return await self._exchange("GET", url, {"Accept": _RESPONSE_TYPE})

    async def fetch(self, url: str) -> bytes:
        """The file at a URL. Raises `TransportError`."""
        reply = await self._exchange("GET", url, {}, redirects=True)
        if reply.http_status != HTTPStatus.OK:
            raise TransportError(f"the server says {http_words(reply.http_status)}")
        return reply.body

    async def _exchange(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None = None, *, redirects: bool = False
    ) -> Reply:
        started = time.perf_counter()
        check_scheme(url)
        with explained(self._timeout_seconds):
            async with self._session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=redirects,
                max_redirects=3,
                skip_auto_headers=() if "Content-Type" in headers else ("Content-Type",),
            ) as reply:
                if not redirects:
                    refuse_redirect(reply)
                octets = await read(reply)
                elapsed = (time.perf_counter() - started) * 1000
                return Reply(reply.status, media_type_of(reply), octets, round(elapsed, 1), reply.headers)
