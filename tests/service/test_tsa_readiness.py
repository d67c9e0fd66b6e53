"""A time-stamp authority is a good place for requests only while its clock is sure; real NTP servers make it doubt."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from lakthan.config import ClockConfig
from support.ntp import ntp_servers
from support.tsa import Authority, failure, new_unit, request_for, running_tsa


async def until_said(authority: Authority, status: int) -> str:
    """Return when /readyz has this status; what it says then."""
    async with asyncio.timeout(60):
        while True:
            async with authority.session.get(f"{authority.admin_url}/readyz") as reply:
                text = await reply.text()
                if reply.status == status:
                    return text
            await asyncio.sleep(0.05)


async def test_an_unsure_clock_is_not_ready(database_url: str, tmp_path: Path) -> None:
    """Ready with three NTP servers that agree with the clock; not ready, and no token, when they say that it is two
    seconds off; ready again by itself when they agree again.
    """
    async with ntp_servers(3) as servers:
        clock = ClockConfig(
            sources=("ntp",),
            ntp_servers=tuple(f"127.0.0.1:{server.port}" for server in servers),
            ntp_poll=timedelta(milliseconds=200),
            holdover=timedelta(seconds=5),
            recovery=timedelta(milliseconds=500),
        )
        async with running_tsa(database_url, tmp_path, new_unit(), clock=clock) as authority:
            assert "profile default: ok\n" in await until_said(authority, 200)
            for server in servers:
                server.offset = 2.0
            said = await until_said(authority, 503)
            assert "profile default: " in said
            assert "profile default: ok\n" not in said
            assert failure((await authority.post(request_for())).body)[0] == {"time_not_available"}
            for server in servers:
                server.offset = 0.0
            assert "profile default: ok\n" in await until_said(authority, 200)
