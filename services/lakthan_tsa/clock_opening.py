"""From `[tsa.clock]` to a guard that watches, with its audit trail. Wiring only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.store.clock import ClockEventLog
from lakthan.web.process import run_alongside
from lakthan_tsa.clock.audit import ClockAudit
from lakthan_tsa.clock.chrony import ChronySource
from lakthan_tsa.clock.kernel import KernelClock, KernelSource
from lakthan_tsa.clock.quorum import NTPQuorum
from lakthan_tsa.clock_guard import ClockGuard

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from datetime import timedelta

    import asyncpg

    from lakthan.config import ClockConfig
    from lakthan_tsa.clock.values import Clock, Source


def sources_of(settings: ClockConfig, clock: Clock) -> list[Source]:
    """The sources that are configured. Raises `ConfigError`."""
    if settings.ntp_servers and "ntp" not in settings.sources:
        raise ConfigError('ntp_servers of the clock are set but not asked: add "ntp" to its sources')
    sources: list[Source] = []
    for name in dict.fromkeys(settings.sources):
        if name == "kernel":
            sources.append(KernelSource())
        elif name == "chrony":
            sources.append(ChronySource(settings.chrony, clock))
        else:
            sources.append(NTPQuorum(settings.ntp_servers, clock, poll=settings.ntp_poll, holdover=settings.holdover))
    return sources


def open_guard(stack: AsyncExitStack, settings: ClockConfig, pool: asyncpg.Pool, *, accuracy: timedelta) -> ClockGuard:
    """A guard of this machine's clock that watches, and records what happens, until `stack` closes.

    `accuracy` is the finest claim that its state speaks of. Raises `ConfigError`.
    """
    clock = KernelClock()
    audit = ClockAudit(ClockEventLog(pool).append)
    guard = ClockGuard(
        clock,
        sources_of(settings, clock),
        accuracy=accuracy,
        mode=settings.mode,
        warn_at=settings.warn_at,
        recovery=settings.recovery,
        leap_second=settings.leap_second,
        note=audit.note,
    )
    run_alongside(stack, audit.write())
    run_alongside(stack, guard.watch())
    return guard
