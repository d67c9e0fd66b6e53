"""What a service manager is told (sd_notify), on a real datagram socket: by a supervisor, and by a process alone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lakthan.web import notify
from service.test_workers import supervised


@contextmanager
def manager(path: str) -> Iterator[socket.socket]:
    """A service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path.replace("@", "\0", 1))
        listening.settimeout(0)
        yield listening


def told(listening: socket.socket) -> list[str]:
    """Everything that was said since the last look."""
    said = []
    while True:
        try:
            said.append(listening.recv(4096).decode())
        except BlockingIOError:
            return said


async def test_the_life_of_a_supervisor(database_url: str, tmp_path: Path) -> None:
    """Ready when its workers have begun, alive as often as it is asked for, reloading with its instant and ready again
    around a rolling restart, stopping at the end; and the workers say nothing.
    """
    path = str(tmp_path / "notify")
    with manager(path) as listening:
        variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
        async with supervised(database_url, tmp_path, variables=variables) as up:
            said: list[str] = []

            def heard(words: str) -> bool:
                said.extend(told(listening))
                return any(words in each for each in said)

            await up.until(lambda: heard("READY=1\nSTATUS=2 workers run."))
            said.clear()
            await up.until(lambda: heard("WATCHDOG=1"))
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            up.process.send_signal(signal.SIGHUP)
            await up.until(lambda: heard("READY=1\nSTATUS=2 of 2 workers were replaced."))
            (reloading,) = [each for each in said if each.startswith("RELOADING=1\n")]
            instant = int(reloading.partition("MONOTONIC_USEC=")[2])
            assert before <= instant <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            assert said.index(reloading) < said.index("READY=1\nSTATUS=2 of 2 workers were replaced.")
            up.process.send_signal(signal.SIGTERM)
            await up.process.wait()
            assert heard("STOPPING=1")
            assert said[-1] == "STOPPING=1"
            assert sum(each.startswith(("READY=1", "STOPPING=1")) for each in said) == 2


def test_the_abstract_name_space_and_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that begins with @ is a socket without a file; without a manager nothing happens, and one that is gone
    stops nobody.
    """
    name = f"@lakthan-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with manager(name) as listening:
        notify.notify("READY=1", "STATUS=here")
        assert told(listening) == ["READY=1\nSTATUS=here"]
    notify.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.notify("READY=1")


async def test_the_watchdog_is_for_who_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that inherited another one's variables does not speak for it; nor one that is not asked."""
    name = f"@lakthan-test-{os.getpid()}-watchdog"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with manager(name) as listening:
        await notify.watchdog()
        monkeypatch.setenv("WATCHDOG_USEC", "1000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
        await notify.watchdog()
        assert told(listening) == []
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        speaking = asyncio.create_task(notify.watchdog())
        while not (said := told(listening)):  # noqa: ASYNC110 - a socket of the test
            await asyncio.sleep(0)
        speaking.cancel()
        assert set(said) == {"WATCHDOG=1"}
