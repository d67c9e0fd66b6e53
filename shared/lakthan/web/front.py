"""The public listening socket of a service: the wire (`lakthan.web.wire`) where the service has a short way, and behind
it, or alone, aiohttp's low-level server.

There is no router on purpose: a router decodes, normalises or refuses paths, and the path of an OCSP GET *is* the
request (RFC 9919 §6). The handler gets every request there is, with the target as it came over the wire.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from lakthan.errors import ConfigError
from lakthan.web.acceptor import Acceptor, listen
from lakthan.web.wire import Wire
from lakthan.web.worker import this_worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lakthan.web.wire import Quick

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_KEEP_ALIVE_SECONDS = 75.0
_DRAIN_SECONDS = 10.0
_BACKLOG = 1024
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


class BodyTooLarge(Exception):
    """The client sends more than the service reads."""


class Front:
    """A bound public port. `port` is the real one when 0 was asked for. `wire`: None without a short way. OCSP-Q13."""

    def __init__(
        self, runner: web.BaseRunner, port: int, wire: Wire | None = None, acceptor: Acceptor | None = None
    ) -> None:
        self._runner = runner
        self._acceptor = acceptor
        self.port = port
        self.wire = wire

    @classmethod
    async def open(cls, handler: Handler, host: str, port: int, *, quick: Quick | None = None) -> Front:
        """Listen and serve; in a worker, on a port that the other workers listen on too. Raises `ConfigError` when the
        address cannot be had.
        """
        # auto_decompress: a request that is mislabelled `Content-Encoding: gzip` would fail inside aiohttp; the
        # protocols here know no content coding, so the octets are taken as they are.
        server = web.Server(handler, auto_decompress=False, access_log=None, keepalive_timeout=_KEEP_ALIVE_SECONDS)
        runner = web.ServerRunner(server, shutdown_timeout=_DRAIN_SECONDS)
        if quick is None:
            return cls(runner, await _listen(runner, host, port, shared=_shared()))
        await runner.setup()
        try:
            listeners = listen(host, port, backlog=_BACKLOG, shared=_shared())
        except OSError as error:
            await runner.cleanup()
            raise _cannot_listen(host, port, error) from error
        wire = Wire(quick, server)
        return cls(runner, listeners[0].getsockname()[1], wire, Acceptor(wire, listeners))

    async def close(self) -> None:
        """Stop accepting, let requests in flight finish, close."""
        if self._acceptor is not None:
            await self._acceptor.close()
        drained = self.wire.drain(_DRAIN_SECONDS) if self.wire is not None else asyncio.sleep(0)
        await asyncio.gather(drained, self._runner.cleanup())


def _shared() -> bool | None:
    """Whether a public port is shared with others (SO_REUSEPORT)."""
    return this_worker() is not None or None


async def _listen(runner: web.BaseRunner, host: str, port: int, *, shared: bool | None = None) -> int:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG, reuse_port=shared).start()
    except OSError as error:
        await runner.cleanup()
        raise _cannot_listen(host, port, error) from error
    bound: int = runner.addresses[0][1]
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}")


async def open_admin(application: web.Application, host: str, port: int) -> Front:
    """The same for the admin port, which has routes. A worker's is a UNIX socket, for its supervisor; `port` is 0."""
    runner = web.AppRunner(application, access_log=None)
    worker = this_worker()
    if worker is not None:
        await runner.setup()
        await web.UnixSite(runner, worker.admin_socket).start()
        return Front(runner, 0)
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
