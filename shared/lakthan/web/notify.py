"""What the service manager is told, if there is one that listens: sd_notify(3), a datagram on the socket that it names.

READY=1 when requests are answered, RELOADING=1 while workers are replaced, STOPPING=1, and WATCHDOG=1 as often as it
asks for: half of the time that it waits (WATCHDOG_USEC). Without a manager nothing happens.

Trusted: whoever set NOTIFY_SOCKET; nothing is read from there.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time

from lakthan.telemetry.logs import log

SOCKET_VARIABLE = "NOTIFY_SOCKET"
_WATCHDOG_VARIABLE = "WATCHDOG_USEC"
_WATCHDOG_PID_VARIABLE = "WATCHDOG_PID"
# Not for child processes: they are not who the manager waits for.
VARIABLES = (SOCKET_VARIABLE, _WATCHDOG_VARIABLE, _WATCHDOG_PID_VARIABLE)


def notify(*assignments: str) -> None:
    """Tell the manager; a manager that cannot be told is a warning in the log."""
    path = os.environ.get(SOCKET_VARIABLE)
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # '@' stands for the abstract name space.
            sender.connect("\0" + path[1:] if path.startswith("@") else path)
            sender.send("\n".join(assignments).encode())
    except OSError as error:
        log.warning("the service manager cannot be told", told=assignments[0], problem=str(error))


def notify_reloading() -> None:
    """RELOADING=1 with the instant that the manager wants beside it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


async def watchdog() -> None:
    """Say again and again that the event loop turns, for as long as it is asked for; until cancelled."""
    microseconds, pid = os.environ.get(_WATCHDOG_VARIABLE, ""), os.environ.get(_WATCHDOG_PID_VARIABLE)
    if not microseconds.isdigit() or pid not in (None, str(os.getpid())):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / 2_000_000)
