"""The admin port of every process: `/livez`, `/readyz`, `/metrics`. Never part of the public address.

`/livez` says that the event loop turns. `/readyz` is 200 when every named check is fine and 503 with the reasons
otherwise, so that a load balancer sends no traffic here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry

from lakthan.telemetry.exposition import exposition
from lakthan.web.leaving import this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Checks = Callable[[], Mapping[str, str]]


def admin_application(registry: CollectorRegistry, checks: Checks) -> web.Application:
    """`checks` gives, for everything the service needs, its name and what is wrong with it ('' when nothing is)."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        results = {**checks(), **({"stopping": this_process.problem} if this_process.asked else {})}
        lines = "".join(f"{name}: {problem or 'ok'}\n" for name, problem in results.items())
        return web.Response(status=503 if any(results.values()) else 200, text=lines)

    async def metrics(http_request: web.Request) -> web.Response:
        body, headers = exposition(registry, accepted(http_request))
        return web.Response(body=body, headers=headers)

    application = web.Application()
    application.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return application


def accepted(http_request: web.Request) -> str:
    """What the client accepts, as one field: several lines of it mean the same (RFC 9110 §5.3)."""
    return ",".join(http_request.headers.getall("Accept", ()))
