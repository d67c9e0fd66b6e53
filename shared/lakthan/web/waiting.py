"""A service that cannot begin yet: alive, not ready, and saying why, until it can.

While it waits only the admin port is open, so a supervisor neither restarts it nor sends it traffic.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import open_admin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

_LOOK_SECONDS = 0.5
_SAY_AGAIN_SECONDS = 60.0


async def wait_until_fine(
    what: str, problem: Callable[[], Awaitable[str]], *, registry: CollectorRegistry, host: str, port: int
) -> None:
    """Return when `problem` gives ''. Until then `/readyz` on `host` and `port` says, by the name `what`, what is
    wrong.

    Raises `ConfigError` when the address cannot be had.
    """
    found = await problem()
    if not found:
        return
    admin = await open_admin(admin_application(registry, lambda: {what: found}), host, port)
    try:
        loop, said, said_at = asyncio.get_running_loop(), "", 0.0
        while found:
            if found != said or loop.time() > said_at + _SAY_AGAIN_SECONDS:
                log.warning("waiting", what=what, problem=found, admin_port=admin.port)
                said, said_at = found, loop.time()
            await asyncio.sleep(_LOOK_SECONDS)
            found = await problem()
    finally:
        await admin.close()
    log.info("no longer waiting", what=what)
