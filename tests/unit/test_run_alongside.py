"""Work beside a service: when it fails, somebody hears of it at once and not when the service ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs

from lakthan.web.process import run_alongside


async def test_a_failure_is_told_at_once() -> None:
    """The log has the error while the service still runs; its end raises it."""
    failed = asyncio.Event()

    async def work() -> None:
        try:
            raise RuntimeError("nobody thought of this")
        finally:
            failed.set()

    stack = AsyncExitStack()
    with capture_logs() as lines:
        run_alongside(stack, work())
        await failed.wait()
        await asyncio.sleep(0)
    assert [(line["log_level"], str(line["exc_info"])) for line in lines] == [("error", "nobody thought of this")]
    with pytest.raises(RuntimeError, match="nobody thought"):
        await stack.aclose()


async def test_an_end_is_no_failure() -> None:
    """Work that is cancelled with its service leaves no line."""
    stack = AsyncExitStack()
    with capture_logs() as lines:
        run_alongside(stack, asyncio.sleep(3600))
        await stack.aclose()
    assert lines == []
