"""The machine's own clock, and what its kernel knows of it from whoever disciplines it (adjtimex(2)).

Trusted: the kernel, and whoever may set its clock or tell it that it is synchronised.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lakthan_tsa.clock.leap import end_of_day_ns
from lakthan_tsa.clock.values import ClockState, Doubt, Leap, Opinion

if TYPE_CHECKING:
    from collections.abc import Callable

    from lakthan_tsa.clock.values import Look

_STA_UNSYNC = 0x0040
_STA_CLOCKERR = 0x1000
# What adjtimex returns. TIME_INS and TIME_DEL only until the second comes, while STA_INS stays until it is taken back.
_ANNOUNCED = {1: Leap.INSERTED, 2: Leap.DELETED}


class KernelClock:
    """The clock of this machine. The monotonic one is the raw oscillator, which NTP daemons do not touch."""

    realtime_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(partial(time.clock_gettime_ns, time.CLOCK_MONOTONIC_RAW))


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """What the kernel says about its clock. `max_error_ns` grows by itself until the clock is compared again."""

    synchronised: bool
    max_error_ns: int
    leap: Leap = Leap.NONE


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long),
        ("shift", ctypes.c_int),
        ("stabil", ctypes.c_long),
        ("jitcnt", ctypes.c_long),
        ("calcnt", ctypes.c_long),
        ("errcnt", ctypes.c_long),
        ("stbcnt", ctypes.c_long),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


# Systems without adjtimex have None here; a sandbox may refuse the call, which shows when it is made.
_adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)


def kernel_status() -> KernelStatus | None:
    """Ask the kernel; None when the system does not tell."""
    timex = _Timex(modes=0)  # 0: only read
    told = -1 if _adjtimex is None else _adjtimex(ctypes.byref(timex))
    if told < 0:
        return None
    synchronised = not timex.status & (_STA_UNSYNC | _STA_CLOCKERR)
    return KernelStatus(synchronised, timex.maxerror * 1000, _ANNOUNCED.get(told, Leap.NONE))


class KernelSource:
    """The kernel as a source: its clock is right, give or take its maximal error."""

    name = "kernel"

    def __init__(self, ask: Callable[[], KernelStatus | None] = kernel_status) -> None:
        self._ask = ask

    def opinion(self, look: Look) -> Opinion | Doubt:
        """See `Source`."""
        status = self._ask()
        if status is None:
            return Doubt(ClockState.UNKNOWN, "the system does not tell whether its clock is synchronised")
        if not status.synchronised:
            return Doubt(ClockState.OUT_OF_SYNC, "the clock is not synchronised; start chrony or another NTP daemon")
        return Opinion(look.difference_ns, status.max_error_ns, status.leap, end_of_day_ns(look.realtime_ns))

    def forget(self) -> None:
        """Nothing is remembered: the kernel is asked anew every time."""

    async def watch(self) -> None:
        """Nothing to gather."""
        await asyncio.Event().wait()
