"""The public listening socket of a service, on aiohttp's low-level server.

There is no router on purpose: a router decodes, normalises or refuses paths, and the path of an OCSP GET *is* the
request (RFC 9919 §6). The handler gets every request there is, with the target as it came over the wire.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_KEEP_ALIVE_SECONDS = 75.0
_DRAIN_SECONDS = 10.0
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


class BodyTooLarge(Exception):
    """The client sends more than the service reads."""


class Front:
    """A bound public port. `port` is the real one when 0 was asked for. OCSP-Q13."""

    def __init__(self, runner: web.BaseRunner, port: int) -> None:
        self._runner = runner
        self.port = port

    @classmethod
    async def open(cls, handler: Handler, host: str, port: int) -> Front:
        """Listen and serve. Raises `ConfigError` when the address cannot be had."""
        # auto_decompress: a request that is mislabelled `Content-Encoding: gzip` would fail inside aiohttp; the
        # protocols here know no content coding, so the octets are taken as they are.
        server = web.Server(handler, auto_decompress=False, access_log=None, keepalive_timeout=_KEEP_ALIVE_SECONDS)
        runner = web.ServerRunner(server, shutdown_timeout=_DRAIN_SECONDS)
        return cls(runner, await _listen(runner, host, port))

    async def close(self) -> None:
        """Stop accepting, let requests in flight finish, close."""
        await self._runner.cleanup()


async def _listen(runner: web.BaseRunner, host: str, port: int) -> int:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    bound: int = runner.addresses[0][1]
    return bound


async def open_admin(application: web.Application, host: str, port: int) -> Front:
    """The same for the admin port, which has routes."""
    runner = web.AppRunner(application, access_log=None)
    return Front(runner, await _listen(runner, host, port))


async def read_body(http_request: web.BaseRequest, limit: int) -> bytes:
    """The whole body, chunked or not. Raises `BodyTooLarge` once more than `limit` octets are announced or come.

    A client that waits for a go-ahead before it sends the body gets it (RFC 9110 §10.1.1).

    OCSP-Q14, OCSP-Q15.
    """
    announced = http_request.content_length
    if announced is not None and announced > limit:
        raise BodyTooLarge
    if "Expect" in http_request.headers and http_request.version >= HttpVersion11:
        # aiohttp sees to this in its router only. What goes out here is not yet the response.
        await http_request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        http_request.writer.output_size = 0
    body = b""
    async for chunk in http_request.content.iter_any():
        body = body + chunk if body else chunk
        if len(body) > limit:
            raise BodyTooLarge
    return body


def raw_target(http_request: web.BaseRequest) -> str:
    """The request target as sent, without scheme and host when the client used the absolute form (RFC 9112 §3.2.2).

    OCSP-Q2.
    """
    target = http_request.raw_path
    return target if target.startswith("/") else _ABSOLUTE_FORM.sub("", target, count=1)
