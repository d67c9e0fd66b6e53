"""The clock of this machine: what its kernel says, and what the sources of `[tsa.clock]` say, judged as the time-stamp
authority judges them (`lakthan_tsa.clock_guard`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

from lakthan.config import ClockConfig
from lakthan.errors import ConfigError
from lakthan_cli.doctor.notes import Notes, Patient
from lakthan_tsa.clock.kernel import KernelClock, kernel_status
from lakthan_tsa.clock.quorum import NTPQuorum
from lakthan_tsa.clock_guard import ClockGuard
from lakthan_tsa.clock_opening import sources_of

_SYNCHRONISE = "start chrony or another NTP daemon, and let it reach its servers: chronyc tracking, chronyc sources"
_LARGE_ERROR = timedelta(seconds=1)
_OFTEN_SECONDS = 0.1


async def look(patient: Patient, notes: Notes) -> None:
    """Kernel first, then the sources."""
    _kernel(patient, notes)
    tsa = patient.config.tsa
    if tsa is None:
        return
    accuracy = max(profile.accuracy for profile in tsa.profiles.values()) if tsa.profiles else timedelta(seconds=1)
    try:
        sources = sources_of(tsa.clock, KernelClock())
        guard = ClockGuard(KernelClock(), sources, accuracy=accuracy, mode=tsa.clock.mode, warn_at=tsa.clock.warn_at)
    except ConfigError as error:
        notes.failure("tsa", "sources", str(error), "correct [tsa.clock]: docs/configuration.md")
        return
    measured = set(tsa.clock.sources) - {"kernel"}  # the kernel answers at once
    await _settled(guard, patient.patience if measured else timedelta(0))
    if tsa.clock.mode == "warn":
        todo = 'say clock.mode = "enforce" in earnest: now tokens go out whatever the clock is'
        notes.warning("tsa", "mode", 'clock.mode is "warn"', todo)
    _judge(guard, tsa.clock, notes)
    for source in sources:
        if isinstance(source, NTPQuorum):
            _servers(source, notes)


def _kernel(patient: Patient, notes: Notes) -> None:
    status = kernel_status()
    if status is None:
        notes.warning(
            "kernel", "synchronised", "the system does not tell", "give the process the right to ask adjtimex"
        )
        return
    error = timedelta(microseconds=status.max_error_ns / 1000)
    if status.synchronised and error <= _LARGE_ERROR:
        notes.ok("kernel", "synchronised", f"by an NTP daemon, right to {error.total_seconds():.3f} s")
        return
    said = "nobody disciplines it" if not status.synchronised else f"it may be {error.total_seconds():.1f} s off"
    relied_on = patient.config.tsa is not None and patient.config.tsa.clock.mode == "enforce"
    asked = patient.config.tsa is not None and "kernel" in patient.config.tsa.clock.sources
    (notes.failure if relied_on and asked else notes.warning)("kernel", "synchronised", said, _SYNCHRONISE)


async def _settled(guard: ClockGuard, patience: timedelta) -> None:
    """Let the sources measure until the clock is said to hold, or patience is at its end."""
    guard.check()
    watching = asyncio.create_task(guard.watch())
    loop = asyncio.get_running_loop()
    ends = loop.time() + patience.total_seconds()
    while not guard.state.holds and loop.time() < ends and not watching.done():  # noqa: ASYNC110
        await asyncio.sleep(_OFTEN_SECONDS)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


def _judge(guard: ClockGuard, settings: ClockConfig, notes: Notes) -> None:
    names = ", ".join(settings.sources)
    if guard.state.holds:
        bound = guard.bound or timedelta(0)
        offset = "" if guard.offset is None else f", {guard.offset.total_seconds():+.4f} s off by its best source"
        said = f"{guard.state.label} by {names}: right to {bound.total_seconds():.4f} s{offset}"
        if guard.state.label == "in sync":
            notes.ok("tsa", "sources", said)
        else:
            notes.warning("tsa", "sources", said, _SYNCHRONISE)
        return
    said = f"{guard.state.label} by {names}"
    todo = f"{_SYNCHRONISE}; until then nothing is stamped"
    (notes.failure if settings.mode == "enforce" else notes.warning)("tsa", "sources", said, todo)


def _servers(quorum: NTPQuorum, notes: Notes) -> None:
    for server in quorum.servers:
        if server.standing == "truechimer":
            notes.ok(server.name, "NTP server", "agrees with the others")
        elif server.standing == "falseticker":
            notes.warning(server.name, "NTP server", "outvoted by the others", "leave it out until it is right again")
        else:
            notes.warning(
                server.name, "NTP server", server.problem or "silent", "look at name, network and UDP port 123"
            )
