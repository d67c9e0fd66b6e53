"""Threads that sign: everybody gets his own signature, or his own failure, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lakthan.keys.threads import SigningThreads


def reversed_octets(message: bytes) -> bytes:
    """A signature that is easy to check."""
    if message == b"bad":
        raise ValueError("no signature of this")
    return message[::-1]


async def test_everybody_gets_his_own() -> None:
    """A hundred that ask at once get what belongs to their message."""
    threads = SigningThreads(reversed_octets, 2)
    messages = [b"message %d" % number for number in range(100)]
    assert await asyncio.gather(*map(threads.sign, messages)) == [message[::-1] for message in messages]
    threads.close()


async def test_a_failure_reaches_who_asked() -> None:
    """One message that cannot be signed fails for him who asked, and for nobody else in the same bunch."""
    threads = SigningThreads(reversed_octets, 1)
    results = await asyncio.gather(*map(threads.sign, [b"a", b"bad", b"b"]), return_exceptions=True)
    assert results[0] == b"a"
    assert isinstance(results[1], ValueError)
    assert results[2] == b"b"
    threads.close()


async def test_who_leaves_is_forgotten() -> None:
    """A caller that is cancelled disturbs nobody who comes after."""
    go = threading.Event()

    def slow(message: bytes) -> bytes:
        assert go.wait(20)
        return message

    threads = SigningThreads(slow, 1)
    leaves, stays = (asyncio.create_task(threads.sign(message)) for message in (b"leaves", b"stays"))
    await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    go.set()
    assert await stays == b"stays"
    threads.close()


def test_two_event_loops() -> None:
    """A key that is used in one loop after another, as at a start, serves both, and a loop that was closed meanwhile
    does it no harm.
    """
    threads = SigningThreads(reversed_octets, 1)

    async def ask_and_leave() -> None:
        task = asyncio.create_task(threads.sign(b"nobody waits"))
        await asyncio.sleep(0)
        task.cancel()

    assert asyncio.run(threads.sign(b"first")) == b"tsrif"
    asyncio.run(ask_and_leave())
    assert asyncio.run(threads.sign(b"second")) == b"dnoces"
    threads.close()


async def test_closing_ends_the_threads() -> None:
    """After `close`, what was asked before is still signed, and then no thread is left."""
    threads = SigningThreads(reversed_octets, 3)
    last = asyncio.create_task(threads.sign(b"last"))
    await asyncio.sleep(0)
    threads.close()
    assert await last == b"tsal"
    for thread in threads._threads:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()
