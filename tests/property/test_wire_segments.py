"""The wire under every way in which a network can cut and join what clients send."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from support.wire import Memory, echoing, read_answer, without_date

PLAIN = [
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /later-b HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\n\r\n",
    b"POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /later-d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
    b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
]
UNUSUAL = [
    b"GET /f HTTP/1.1\r\nHost: a\r\nX-Unheard-Of: yes\r\n\r\n",
    b"POST /g HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n",
]


# Such as a memory answers, once it has been asked: at once, together with others, or later.
KNOWN = [
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /ready-b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /later-c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
]


async def answers(requests: list[bytes], cuts: list[int], memory: Memory | None = None) -> list[bytes]:
    """What comes back for these requests, their octets cut at these places, in order."""
    octets = b"".join(requests)
    places = [0, *sorted({cut % len(octets) for cut in cuts}), len(octets)]
    async with echoing(memory) as (front, echo):
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)

        async def keep_promises() -> None:
            while True:
                await echo.arrived.wait()
                echo.reply_to_all()

        async def send() -> None:
            for start, stop in pairwise(places):
                writer.write(octets[start:stop])
                for _ in range(4):
                    await asyncio.sleep(0)

        helpers = [asyncio.create_task(keep_promises()), asyncio.create_task(send())]
        async with asyncio.timeout(20):
            read = [
                without_date(await (reader.readuntil(b"\r\n\r\n") if each.startswith(b"HEAD") else read_answer(reader)))
                for each in requests
            ]
        for helper in helpers:
            helper.cancel()
        writer.close()
        await writer.wait_closed()
    return read


@given(
    st.lists(st.sampled_from(PLAIN + UNUSUAL), min_size=1, max_size=6),
    st.lists(st.integers(0, 10_000), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_segments_do_not_matter(requests: list[bytes], cuts: list[int]) -> None:
    """Any requests, cut anywhere, some answered later: as many answers as requests, in their order, the right ones."""
    check(requests, uvloop.run(answers(requests, cuts)))


@given(
    requests=st.lists(st.sampled_from(KNOWN), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
    between=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_warm_memory_does_not_matter(requests: list[bytes], cuts: list[int], *, between: bool) -> None:
    """The same of requests whose very octets were answered before; `between`: cut where one ends, so that they are."""
    ends = [sum(map(len, requests[:count])) for count in range(1, len(requests))]
    check(requests, uvloop.run(answers(requests, ends if between else cuts, Memory())))


def check(requests: list[bytes], read: list[bytes]) -> None:
    """Each of these got its own answer."""
    for sent, got in zip(requests, read, strict=True):
        method, target = sent.split(b" ")[:2]
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        if method != b"HEAD":
            body = got.partition(b"\r\n\r\n")[2]
            assert body.startswith(method + b" " + target + b" ")
