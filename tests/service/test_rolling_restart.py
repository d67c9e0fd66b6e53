"""Replacing the workers of a service while clients ask: not one request fails, and what cannot serve replaces nobody.

`./run rolling-restart` does the same at size.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from lakthan.web.acceptor import Acceptor, bind, port_of
from lakthan.web.wire import Wire
from service.test_workers import supervised
from support.pki import issue
from support.responder import ACTOR
from support.rolling_restart import measure
from support.wire import Echo, Memory, read_answer

GET = b"GET /y HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("kind", ["ocsp", "tsa"])
async def test_no_request_is_lost_by_a_rolling_restart(kind: str, database_url: str, tmp_path: Path) -> None:
    """Clients that keep their connection, open new ones, pause, or are aiohttp's business: all get their answers while
    both workers are replaced, and those with a connection are asked to make another one.
    """
    tallies = await measure(kind, database_url, tmp_path / kind, workers=2, clients=2, restarts=1)
    assert {name: dict(tally.failed) for name, tally in tallies.items() if tally.failed} == {}
    assert all(tally.requests > tally.asked_to_go for tally in tallies.values())
    assert sum(tally.asked_to_go for tally in tallies.values()) > 0


async def test_a_worker_that_cannot_serve_replaces_nobody(database_url: str, tmp_path: Path) -> None:
    """After SIGHUP with a broken configuration the old workers go on as before, and the log says why; with the
    configuration mended the next SIGHUP replaces them.
    """
    async with supervised(database_url, tmp_path) as up:
        good = issue("good", up.ca)
        await up.writer.issue(up.authority_id, good.serial_number, actor=ACTOR)
        config, before = tmp_path / "lakthan.toml", up.pids()
        text = config.read_text()
        config.write_text(text.replace("file:", "file:missing-"))
        up.process.send_signal(signal.SIGHUP)
        await up.until(lambda: any("does not become ready" in str(line["event"]) for line in up.log))
        for pid in before.values():
            os.kill(pid, 0)
        assert await up.ask(good) == ["good"]
        config.write_text(text)
        up.process.send_signal(signal.SIGHUP)
        await up.until(lambda: any(line.get("replaced") == 2 for line in up.log))
        assert await up.ask(good) == ["good"]
        for pid in before.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        metrics = await up.metrics()
        assert metrics['lakthan_worker_replacements_total{worker="1"}'] == 1
        assert metrics['lakthan_worker_restarts_total{worker="1"}'] == 0


async def test_a_full_queue_is_taken_before_the_socket_is_closed() -> None:
    """Two hundred clients that connected and asked before anybody accepted get their answers from a front that closes:
    what is left in the queue of a socket that is closed would be reset by the system.
    """
    listeners = bind("127.0.0.1", 0, shared=False)
    for each in listeners:
        each.listen(1024)
    clients = [await asyncio.open_connection("127.0.0.1", port_of(listeners[0])) for _ in range(200)]
    for _, writer in clients:
        writer.write(GET)
    quick = Memory()
    wire = Wire(quick, asyncio.Protocol)
    await Acceptor(wire, listeners).close()
    for reader, writer in clients:
        assert (await read_answer(reader)).endswith(b"GET /y ")
        writer.close()
    await wire.drain(5.0)


async def test_what_waits_in_the_queue_is_the_successors() -> None:
    """Clients that connect after the old worker has closed its end of the shared socket, and before the new one
    accepts, wait and are answered.
    """
    (old,) = bind("127.0.0.1", 0, shared=True)
    new = old.dup()
    old.listen(1024)
    first = Wire(Echo(), asyncio.Protocol)
    await Acceptor(first, [old]).close()
    clients = [await asyncio.open_connection("127.0.0.1", port_of(new)) for _ in range(10)]
    for _, writer in clients:
        writer.write(GET)
    second = Wire(Echo(), asyncio.Protocol)
    acceptor = Acceptor(second, [new])
    for reader, writer in clients:
        assert (await read_answer(reader)).endswith(b"GET /y ")
        writer.close()
    await acceptor.close()
    await first.drain(1.0)
    await second.drain(1.0)


async def test_who_leaves_says_so_on_its_last_answers() -> None:
    """Once the wire leaves, an idle connection stays open, its next answer says `Connection: close`, and then it ends;
    an answer that was due already is the last one, too.
    """
    listeners = bind("127.0.0.1", 0, shared=False)
    listeners[0].listen(16)
    echo = Echo()
    wire = Wire(echo, asyncio.Protocol)
    acceptor = Acceptor(wire, listeners)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(listeners[0]))
    due_reader, due_writer = await asyncio.open_connection("127.0.0.1", port_of(listeners[0]))
    writer.write(GET)
    assert b"Connection: close" not in await read_answer(reader)
    due_writer.write(GET.replace(b"/y", b"/later"))
    await echo.arrived.wait()
    wire.leave()
    writer.write(GET)
    echo.reply_to_all()
    for each in (reader, due_reader):
        assert b"\r\nConnection: close\r\n" in await read_answer(each)
        assert await each.read() == b""
    for each_writer in (writer, due_writer):
        each_writer.close()
    await acceptor.close()
    await wire.drain(1.0)
