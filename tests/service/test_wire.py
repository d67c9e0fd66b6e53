"""The wire in front of aiohttp: on real connections, in every order in which octets can come and go.

Everything is asked twice where that makes sense, of a front with the short way and of one without; nobody may be able
to tell them apart.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from lakthan.web.front import Front
from lakthan.web.wire import Connection, Wire
from support.wire import (
    LARGEST,
    Echo,
    Memory,
    conversation,
    echoing,
    first_answer,
    read_answer,
    rendered,
    said,
    without_date,
)

POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET /y HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Front, Echo]]:
    """A front with the short way."""
    async with echoing() as running:
        yield running


def wire_of(front: Front) -> Wire:
    """Its wire."""
    assert front.wire is not None
    return front.wire


@pytest.mark.parametrize("request_octets", [POST, GET])
async def test_split_anywhere(echo: tuple[Front, Echo], request_octets: bytes) -> None:
    """However a request is cut into two segments, the answer is the same, and aiohttp is not needed for it."""
    front, _ = echo
    whole = without_date(await conversation(front.port, request_octets))
    for at in range(1, len(request_octets)):
        assert without_date(await first_answer(front.port, request_octets[:at], request_octets[at:])) == whole
    assert wire_of(front).handed_over == 0


async def test_octet_by_octet(echo: tuple[Front, Echo]) -> None:
    """The slowest honest client gets its answer."""
    front, _ = echo
    answer = await first_answer(front.port, *(POST[at : at + 1] for at in range(len(POST))))
    assert answer.endswith(said("POST", "/x", b"hello"))


@pytest.mark.parametrize(
    "octets",
    [
        POST,
        GET,
        POST + POST,
        GET + POST + GET,
        POST + b"\r\n" + GET,
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        POST.replace(b"Host: a", b"Host: a\r\nConnection: close"),
        GET.replace(b"1.1", b"1.0"),
        POST.replace(b"1.1", b"1.0"),
        GET.replace(b"1.1\r\n", b"1.0\r\nConnection: keep-alive\r\n"),
        POST.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue"),
        POST.replace(b"Host: a", b"Host: a\r\nX-Unheard-Of: yes"),
        GET.replace(b"GET", b"HEAD"),
        GET.replace(b"/y", b"http://a/y"),
        POST.replace(b"/x", b"http://a/x"),
        GET.replace(b"/y", b"/decline"),
        POST.replace(b"/x", b"/decline"),
        POST.replace(b"/x", b"/never"),
        POST.replace(b"POST", b"PUT"),
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        POST.replace(b"Host: a", b"Host: a\r\nContent-Length: 5"),
        GET.replace(b"Host: a", b"Host : a"),
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /" + b"A" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        GET.replace(b"Host: a", b"Host: a\r\nAccept: " + b"x" * 9000),
    ],
)
async def test_nobody_can_tell_the_difference(octets: bytes) -> None:
    """Plain, pipelined, old, odd and broken requests are answered octet for octet as by aiohttp alone."""
    async with echoing() as (front, _), echoing(short=False) as (alone, _):
        assert without_date(await conversation(front.port, octets)) == without_date(
            await conversation(alone.port, octets)
        )


async def test_one_connection_mixes_everything(echo: tuple[Front, Echo]) -> None:
    """After its first unusual request a connection is aiohttp's, and goes on as before."""
    front, _ = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    unusual = GET.replace(b"Host: a", b"Host: a\r\nX-Unheard-Of: yes")
    for octets, expected in [(POST, b"hello"), (GET, b"/y "), (unusual, b"/y "), (POST, b"hello"), (GET, b"/y ")]:
        writer.write(octets)
        assert (await read_answer(reader)).endswith(expected)
    writer.close()
    assert (wire_of(front).answered, wire_of(front).handed_over) == (2, 1)


async def test_a_defect_of_the_short_way_is_answered_by_the_long_one(echo: tuple[Front, Echo]) -> None:
    """Whatever fails there, the client gets its answer."""
    front, _ = echo
    assert (await first_answer(front.port, GET.replace(b"/y", b"/defect"))).endswith(said("GET", "/defect", b""))


async def test_an_answer_that_comes_later(echo: tuple[Front, Echo]) -> None:
    """Requests that come meanwhile are held, and are answered after it, in their order."""
    front, quick = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(POST.replace(b"/x", b"/later"))
    await quick.arrived.wait()
    writer.write(GET)
    writer.write(GET[:7])
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(quick.waiting) == 1
    quick.reply_to_all()
    assert (await read_answer(reader)).endswith(said("POST", "/later", b"hello"))
    writer.write(GET[7:])
    assert (await read_answer(reader)).endswith(said("GET", "/y", b""))
    assert (await read_answer(reader)).endswith(said("GET", "/y", b""))
    writer.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_before_its_answer(echo: tuple[Front, Echo], *, reset: bool) -> None:
    """Nothing fails, and nothing is left of its connection."""
    front, quick = echo
    _, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(POST.replace(b"/x", b"/later"))
    await quick.arrived.wait()
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    if reset:
        await until_empty(wire_of(front))
    quick.reply_to_all()
    await until_empty(wire_of(front))


async def until_empty(wire: Wire) -> None:
    """Return when the wire has no connection."""
    async with asyncio.timeout(10):
        while wire.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_promise_is_kept_once(echo: tuple[Front, Echo]) -> None:
    """A second answer to one request is a defect that shows at once."""
    front, quick = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(POST.replace(b"/x", b"/later"))
    await quick.arrived.wait()
    connection, text = quick.waiting[0]
    connection.reply(text)
    with pytest.raises(RuntimeError, match="no answer is due"):
        connection.reply(text)
    await read_answer(reader)
    writer.close()


async def test_a_client_that_stops_sending_gets_its_answer(echo: tuple[Front, Echo]) -> None:
    """The end of the client's stream does not cost it the answer that is due; then the connection ends."""
    front, quick = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(POST.replace(b"/x", b"/later"))
    await quick.arrived.wait()
    writer.write_eof()
    for _ in range(10):
        await asyncio.sleep(0)
    quick.reply_to_all()
    assert (await read_answer(reader)).endswith(b"hello")
    assert await reader.read() == b""
    writer.close()


async def test_a_client_that_sends_ahead_without_end(echo: tuple[Front, Echo]) -> None:
    """While an answer is due, little is held of what comes behind it; the rest stays with the client."""
    front, quick = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(POST.replace(b"/x", b"/later"))
    await quick.arrived.wait()
    many = 200_000
    writer.write(GET * many)
    (connection,) = wire_of(front).connections
    async with asyncio.timeout(10):
        while connection._transport is None or connection._transport.is_reading():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(connection._held or b"") < 1 << 20
    quick.reply_to_all()
    await read_answer(reader)
    for _ in range(1000):
        assert (await read_answer(reader)).endswith(b"/y ")
    writer.transport.abort()


async def test_a_client_that_does_not_read(echo: tuple[Front, Echo]) -> None:
    """Its answers are not piled up: nothing more is read of it until it reads, and then all come, in order."""
    front, _ = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    large = GET.replace(b"/y", b"/large")
    count = 0
    async with asyncio.timeout(20):
        connection: Connection | None = None
        while connection is None or not connection._paused:
            writer.write(large)
            count += 1
            await asyncio.sleep(0.01)
            connection = next(iter(wire_of(front).connections), None)
    writer.write(large * 2 + GET)
    for _ in range(count + 2):
        assert len(await read_answer(reader)) == len(rendered(bytes(1 << 20)))
    assert (await read_answer(reader)).endswith(b"/y ")
    writer.close()


async def test_idle_and_slow_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without requests ends after the keep-alive time, one that trickles a request before it is whole."""
    monkeypatch.setattr("lakthan.web.wire._SWEEP_SECONDS", 0.05)
    quick = Echo()
    loop = asyncio.get_running_loop()
    for segments, limits in [((GET,), (0.3, 60.0)), ((GET, POST[:-1]), (60.0, 0.3)), ((POST[:9],), (60.0, 0.3))]:
        wire = Wire(quick, asyncio.Protocol, keep_alive_seconds=limits[0], patience_seconds=limits[1])
        listener = await loop.create_server(wire, "127.0.0.1", 0)
        answers = await conversation_until_closed(listener.sockets[0].getsockname()[1], segments)
        assert answers.count(b"200 OK") == segments.count(GET)
        assert wire.timed_out == 1
        listener.close()
        await wire.drain(0)


async def conversation_until_closed(port: int, segments: tuple[bytes, ...]) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    octets = b""
    for segment in segments:
        writer.write(segment)
        if segment == GET:
            octets += await read_answer(reader)
    async with asyncio.timeout(10):
        try:
            octets += await reader.read()
        except ConnectionResetError:
            octets += b""
    writer.close()
    return octets


async def test_a_slow_request_has_its_own_time(echo: tuple[Front, Echo]) -> None:
    """Trickling does not buy time, and a long idle time before a request does not count against it."""
    front, _ = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(GET)
    await read_answer(reader)
    wire = wire_of(front)
    (connection,) = wire.connections
    wire.sweep_time += 50.0
    assert not connection.overdue(wire.sweep_time - 75.0, wire.sweep_time - 20.0)
    for at in range(4):
        connection.data_received(GET[at : at + 1])
        assert not connection.overdue(wire.sweep_time - 75.0, wire.sweep_time - 20.0)
        wire.sweep_time += 6.0
    assert connection.overdue(wire.sweep_time - 75.0, wire.sweep_time - 20.0)
    writer.close()


async def test_stopping(echo: tuple[Front, Echo]) -> None:
    """Idle connections end at once; who waits for an answer gets it first; nobody new is let in."""
    front, quick = echo
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", front.port)
    idle_writer.write(GET)
    await read_answer(idle_reader)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(POST.replace(b"/x", b"/later"))
    await quick.arrived.wait()
    closing = asyncio.create_task(front.close())
    assert await idle_reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", front.port)
    quick.reply_to_all()
    assert (await read_answer(reader)).endswith(b"hello")
    assert await reader.read() == b""
    await closing
    for each in (idle_writer, writer):
        each.close()


@pytest.mark.parametrize("plain", [POST, GET])
async def test_one_question_and_goodbye(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says that a request is the only one gets its known answer at the door, the same as aiohttp's, and the end."""
    only = plain.replace(b"Host: a", b"Host: a\r\nConnection: close")
    memory = Memory()
    at_the_door: list[bool] = []
    only_request = Wire.only_request

    def noted(self: Wire, data: bytes, address: str) -> bytes | None:
        response = only_request(self, data, address)
        at_the_door.append(response is not None)
        return response

    monkeypatch.setattr(Wire, "only_request", noted)
    async with echoing(memory) as (front, _), echoing(short=False) as (alone, _):
        expected = without_date(await conversation(alone.port, only))
        for _ in range(3):
            assert without_date(await conversation(front.port, only)) == expected
        assert at_the_door == [False, True, True]  # the first one was needed to learn the head
        assert memory.known_answers == wire_of(front).answered == 3
        assert without_date(await conversation(front.port, only, plain)) == expected
        assert without_date(await conversation(front.port, only[:30], only[30:])) == expected
        assert without_date(await conversation(front.port, plain + only)).endswith(expected.split(b"\r\n\r\n")[-1])


async def test_a_connection_that_brings_nothing(echo: tuple[Front, Echo]) -> None:
    """Connected and gone again: nothing is left, and the next one is served."""
    front, _ = echo
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.close()
        await writer.wait_closed()
    assert (await first_answer(front.port, GET)).endswith(b"/y ")
    await until_empty(wire_of(front))


async def test_no_file_descriptor_is_left(echo: tuple[Front, Echo], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process at its limit does not spin and does not fail: it accepts again when there is room."""
    front, _ = echo
    monkeypatch.setattr("lakthan.web.acceptor._PAUSE_SECONDS", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    resource.setrlimit(resource.RLIMIT_NOFILE, (writer.get_extra_info("socket").fileno() + 1, hard))
    try:
        writer.write(GET)
        await asyncio.sleep(0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (await read_answer(reader)).endswith(b"/y ")
    writer.close()


async def test_many_different_heads(echo: tuple[Front, Echo], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of known heads stay small, whatever clients send."""
    monkeypatch.setattr("lakthan.web.wire_heads.forget_oldest.__defaults__", (64,))
    front, _ = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    for number in range(300):
        agent = b"Host: a\r\nUser-Agent: %d" % number
        for octets in (POST, GET):
            writer.write(octets.replace(b"Host: a", agent))
            await read_answer(reader)
    writer.close()
    assert max(len(wire_of(front).posts), len(wire_of(front).gets)) <= 64
    assert wire_of(front).answered == 600


async def test_a_body_beyond_the_limit_is_refused_in_the_services_words(echo: tuple[Front, Echo]) -> None:
    """It is aiohttp's from its head on."""
    front, _ = echo
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (LARGEST + 1)
    await conversation(front.port, head)
    assert wire_of(front).handed_over == 1


async def connected(front: Front) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Connection]:
    """A client, and the connection that the wire has with it."""
    before = set(wire_of(front).connections)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(GET)
    await read_answer(reader)
    (connection,) = wire_of(front).connections - before
    return reader, writer, connection


async def test_answers_of_one_turn_leave_together(echo: tuple[Front, Echo]) -> None:
    """Twenty clients whose requests come in one turn of the event loop: nothing is sent before it ends unless it is a
    lot, and then each has its own answer.
    """
    front, _ = echo
    clients = [await connected(front) for _ in range(20)]
    for number, (_, _, connection) in enumerate(clients):
        connection.data_received(GET.replace(b"/y", b"/%d" % number))
    for number, (reader, writer, _) in enumerate(clients):
        assert (await read_answer(reader)).endswith(said("GET", f"/{number}", b""))
        writer.close()


@pytest.mark.parametrize(
    "second", [GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), GET.replace(b"1.1", b"1.0"), GET, GET + GET]
)
async def test_an_answer_that_has_not_left_comes_first(echo: tuple[Front, Echo], second: bytes) -> None:
    """Whatever the client asks next in the same turn, and whoever answers it: the order stays, and nothing is lost."""
    front, _ = echo
    reader, writer, connection = await connected(front)
    connection.data_received(POST)
    connection.data_received(second)
    assert (await read_answer(reader)).endswith(b"hello")
    assert (await read_answer(reader)).endswith(said("GET", "/y", b""))
    writer.close()


async def test_the_long_way_may_write_at_once(echo: tuple[Front, Echo]) -> None:
    """The connection changes hands after the answer has left, however quick the other one is."""

    class Hasty(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(rendered(b"at once"))  # type: ignore[attr-defined]
            transport.close()

    front, _ = echo
    reader, writer, connection = await connected(front)
    wire_of(front).make_handler = Hasty
    connection.data_received(POST)
    connection.data_received(GET.replace(b"1.1", b"1.0"))
    assert (await read_answer(reader)).endswith(b"hello")
    assert (await read_answer(reader)).endswith(b"at once")
    writer.close()


async def test_stopping_with_an_answer_that_has_not_left(echo: tuple[Front, Echo]) -> None:
    """It leaves before the connection is closed."""
    front, _ = echo
    reader, writer, connection = await connected(front)
    connection.data_received(POST)
    await wire_of(front).drain(10.0)
    assert (await read_answer(reader)).endswith(b"hello")
    assert await reader.read() == b""
    writer.close()


async def test_a_client_that_is_gone_when_its_answer_leaves(echo: tuple[Front, Echo]) -> None:
    """The others get theirs."""
    front, _ = echo
    _, gone_writer, gone = await connected(front)
    reader, writer, connection = await connected(front)
    gone.end()
    gone.data_received(POST)
    connection.data_received(POST)
    assert (await read_answer(reader)).endswith(b"hello")
    for each in (gone_writer, writer):
        each.close()


async def test_octets_that_were_answered_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not read again, whichever way they came then, and the answer is the same; nobody else's is."""
    monkeypatch.setattr("lakthan.web.outgoing._GATHERED_SECONDS", 60.0)
    memory = Memory()
    ready = GET.replace(b"/y", b"/ready")
    async with echoing(memory) as (front, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        for octets, body in [(POST, b"hello"), (GET, b"/y "), (ready, b"/ready ")] * 3:
            writer.write(octets)
            assert (await read_answer(reader)).endswith(body)
        assert (memory.again, wire_of(front).answered, wire_of(front).handed_over) == (6, 9, 0)
        writer.write(POST + GET)  # neither of the two
        assert (await read_answer(reader)).endswith(b"hello")
        assert (await read_answer(reader)).endswith(b"/y ")
        assert (memory.again, wire_of(front).handed_over) == (6, 1)
        writer.close()


@pytest.mark.parametrize("first", [GET.replace(b"/y", b"/ready"), GET.replace(b"/y", b"/later"), POST])
async def test_a_known_answer_does_not_overtake(first: bytes) -> None:
    """An answer of the same connection that has not left yet, or is not there yet, comes first."""
    memory = Memory()
    async with echoing(memory) as (front, _):
        for octets in (first, GET):
            if b"later" not in octets:
                await first_answer(front.port, octets)
        reader, writer, connection = await connected(front)
        before = memory.again
        connection.data_received(first)
        connection.data_received(GET)
        if memory.waiting:
            assert memory.again == before
            memory.reply_to_all()
        assert not (await read_answer(reader)).endswith(b"/y ")
        assert (await read_answer(reader)).endswith(b"/y ")
        assert memory.again > before
        writer.close()


async def test_a_known_answer_is_the_last_one_when_the_service_leaves() -> None:
    """Also octets that were answered a moment ago get an answer that says that it is the last."""
    memory = Memory()
    async with echoing(memory) as (front, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        for _ in range(3):
            writer.write(GET)
            await read_answer(reader)
        assert memory.again == 2
        wire_of(front).leave()
        writer.write(GET)
        assert b"\r\nConnection: close\r\n" in await read_answer(reader)
        assert await reader.read() == b""
        assert memory.again == 2
        writer.close()


async def test_a_defect_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that fails costs nobody an answer."""

    def defect(_self: Memory, _request: bytes) -> bytes | None:
        raise RuntimeError("a defect made by the test")

    monkeypatch.setattr(Memory, "ready", defect)
    async with echoing(Memory()) as (front, _):
        assert (await first_answer(front.port, GET)).endswith(said("GET", "/y", b""))
        assert wire_of(front).handed_over == 1


async def test_slow_answers_do_not_wait_for_each_other(
    echo: tuple[Front, Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has waited long enough for company leaves, although more of the same turn is to come."""
    front, _ = echo
    clients = [await connected(front) for _ in range(3)]
    for seconds, left in [(60.0, 0), (-1.0, 2)]:
        monkeypatch.setattr("lakthan.web.outgoing._GATHERED_SECONDS", seconds)
        for _, _, connection in clients[:2]:
            connection.data_received(GET)
        assert 2 - len(wire_of(front).outgoing.waiting) == left
        for reader, _, _ in clients[:2]:
            assert (await read_answer(reader)).endswith(b"/y ")
    for _, writer, _ in clients:
        writer.close()
