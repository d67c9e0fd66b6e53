"""The public listening socket of a service: the wire (`lakthan.web.wire`) where the service has a short way, and behind
it, or alone, aiohttp's low-level server.

There is no router on purpose: a router decodes, normalises or refuses paths, and the path of an OCSP GET *is* the
request (RFC 9919 §6). The handler gets every request there is, with the target as it came over the wire.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from lakthan.errors import ConfigError
from lakthan.web.acceptor import Acceptor, bind, port_of
from lakthan.web.leaving import this_process
from lakthan.web.room import MOST_CONNECTIONS, Guest, descriptors_for
from lakthan.web.sources import read_networks
from lakthan.web.wire import Wire
from lakthan.web.worker import this_worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lakthan.web.wire import Quick

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_KEEP_ALIVE_SECONDS = 75.0
_DRAIN_SECONDS = 10.0
# For so long what comes of a body that was refused is read and thrown away, so that the client reads the refusal (RFC
# 9112 §9.6).
_LINGER_SECONDS = 1.0
# A client that has said nothing for so long on its connection is not just about to ask again.
_QUIET_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_BACKLOG = 1024
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


# What all bodies may have that aiohttp reads at one time: each is kept in pieces and once as a whole.
_MOST_BODY_OCTETS = 16 * 1024 * 1024
_BODY_SECONDS = 20.0
_GUEST: web.RequestKey[Guest | None] = web.RequestKey("guest", Guest)


class BodyTooLarge(Exception):
    """The client sends more than the service reads."""


class _BodyRefused(Exception):
    """A body is not read to its end: too slow (408), no room for it (503), or the client has gone (400)."""


class _Bodies:
    """How much is held of the bodies that aiohttp reads."""

    octets = 0


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
    async def open(
        cls,
        handler: Handler,
        host: str,
        port: int,
        *,
        quick: Quick | None = None,
        connections: int = MOST_CONNECTIONS,
        proxies: Sequence[str] = (),
    ) -> Front:
        """Listen and serve; in a worker, on the sockets that it was given. Raises `ConfigError` when the address cannot
        be had. `connections` and `proxies`: see `lakthan.web.room` and `lakthan.web.sources`.
        """
        networks = read_networks(proxies)
        wire: Wire | None = None

        async def handle(http_request: web.BaseRequest) -> web.StreamResponse:
            transport = http_request.transport
            guest = wire.guests.get(transport) if wire is not None and transport is not None else None
            http_request[_GUEST] = guest
            if guest is not None:
                guest.asked = guest.busy = True
            try:
                response = await handler(http_request)
            except _BodyRefused as error:
                response = web.Response(status=error.args[0], headers={"Retry-After": "1", "Cache-Control": "no-store"})
                response.force_close()
                if wire is not None:
                    wire.timed_out += error.args[0] == HTTPStatus.REQUEST_TIMEOUT
                    wire.turned_away += error.args[0] == HTTPStatus.SERVICE_UNAVAILABLE
            finally:
                if guest is not None and wire is not None:
                    guest.busy, guest.since = False, wire.sweep_time
            if this_process.asked:
                response.force_close()
            return response

        # auto_decompress: a request that is mislabelled `Content-Encoding: gzip` would fail inside aiohttp; the
        # protocols here know no content coding, so the octets are taken as they are.
        server = web.Server(
            handle,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            lingering_time=_LINGER_SECONDS,
        )
        runner = web.ServerRunner(server, shutdown_timeout=_DRAIN_SECONDS)
        if quick is None:
            return cls(runner, await _listen(runner, host, port))
        await runner.setup()
        worker = this_worker()
        try:
            listeners = bind(host, port, shared=False) if worker is None else worker.sockets()
            for listener in listeners:
                listener.listen(_BACKLOG)
        except OSError as error:
            await runner.cleanup()
            raise _cannot_listen(host, port, error) from error
        wire = Wire(quick, server, most_connections=descriptors_for(connections), proxies=networks)
        front = cls(runner, port_of(listeners[0]), wire, Acceptor(wire, listeners))
        this_process.fronts.add(front)
        return front

    async def leave(self) -> None:
        """Accept no more and let the clients go: every answer is the last of its connection from now on. Returns when
        all have gone, or those that stay have said nothing for a while.
        """
        if self.wire is None or self._acceptor is None:
            return
        self.wire.leave()
        await self._acceptor.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_SECONDS):
                while self.wire.connections or self._by_aiohttp():  # noqa: ASYNC110 - aiohttp's tell nobody
                    await asyncio.sleep(_LOOK_SECONDS)

    def _by_aiohttp(self) -> bool:
        """Whether some connection is aiohttp's."""
        server = self._runner.server
        return server is not None and bool(server.connections)

    async def close(self) -> None:
        """Stop accepting, let requests in flight finish, close."""
        this_process.fronts.discard(self)
        if self._acceptor is not None:
            await self._acceptor.close()
        drained = self.wire.drain(_DRAIN_SECONDS) if self.wire is not None else asyncio.sleep(0)
        await asyncio.gather(drained, self._runner.cleanup())


async def _listen(runner: web.BaseRunner, host: str, port: int) -> int:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
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
    """The whole body, chunked or not. Raises `BodyTooLarge` once more than `limit` octets are announced or come. One
    that does not come within 20 s, or finds no room, is refused by the front itself.

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
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in http_request.content.iter_any():
                _Bodies.octets += len(chunk)
                body = body + chunk if body else chunk
                if len(body) > limit:
                    raise BodyTooLarge
                if _Bodies.octets > _MOST_BODY_OCTETS:
                    raise _BodyRefused(HTTPStatus.SERVICE_UNAVAILABLE)
    except TimeoutError as error:
        raise _BodyRefused(HTTPStatus.REQUEST_TIMEOUT) from error
    except ConnectionError as error:  # the client has gone, and nobody reads this
        raise _BodyRefused(HTTPStatus.BAD_REQUEST) from error
    finally:
        _Bodies.octets -= len(body)
    return body


def may_work(http_request: web.BaseRequest) -> bool:
    """To be asked by a service before it does what costs it time. False: the client has had its share, and is to be
    told to come again.
    """
    guest = http_request.get(_GUEST)
    return guest is None or guest.may_work()


def raw_target(http_request: web.BaseRequest) -> str:
    """The request target as sent, without scheme and host when the client used the absolute form (RFC 9112 §3.2.2).

    OCSP-Q2.
    """
    target = http_request.raw_path
    return target if target.startswith("/") else _ABSOLUTE_FORM.sub("", target, count=1)
