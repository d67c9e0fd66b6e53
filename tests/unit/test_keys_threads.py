"""Threads that sign: everybody gets his own signature, or his own failure, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue

import pytest

from lakthan.errors import SignerBusy, SignerUnusable
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


class Slow:
    """Signs one message for each permit, and says so."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._begun: SimpleQueue[bytes] = SimpleQueue()

    def sign(self, message: bytes) -> bytes:
        """The signature, once there is a permit."""
        self._begun.put(message)
        assert self._permits.acquire(timeout=20)
        return reversed_octets(message)

    async def until_begun(self, message: bytes) -> None:
        """Return when this message's turn has come, and everybody before it who is to be told has been told."""
        while await asyncio.to_thread(self._begun.get, timeout=20) != message:
            pass
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def permit(self, signatures: int) -> None:
        """Let so many be made."""
        self._permits.release(signatures)


async def test_half_of_those_who_wait_are_told_together() -> None:
    """Who asks alone is told at once. Of those who came meanwhile, half are told together, so that the event loop is
    woken less often than there are signatures.
    """
    slow = Slow()
    threads = SigningThreads(slow.sign, 1, together_seconds=60)
    told: list[bytes | Exception] = []
    threads.submit(b"00", told.append)
    await slow.until_begun(b"00")
    for number in range(1, 9):
        threads.submit(b"%02d" % number, told.append)
    slow.permit(4)
    await slow.until_begun(b"04")
    assert told == [b"00"]
    slow.permit(1)
    await slow.until_begun(b"05")
    assert told == [b"00", b"10", b"20", b"30", b"40"]
    slow.permit(4)
    threads.close()
    await threads_ended(threads)
    assert told[5:] == [b"50", b"60", b"70", b"80"]


async def test_nobody_waits_long_for_others() -> None:
    """When a bunch takes longer than it may, those whose signatures are made are told, however many still wait."""
    slow = Slow()
    threads = SigningThreads(slow.sign, 1, together_seconds=0)
    told: list[bytes | Exception] = []
    for number in range(9):
        threads.submit(b"%02d" % number, told.append)
    slow.permit(2)
    await slow.until_begun(b"02")
    assert told == [b"00", b"10"]
    slow.permit(7)
    threads.close()
    await threads_ended(threads)
    assert len(told) == 9


async def test_too_many() -> None:
    """When as many wait as may, the next is refused at once, and those who wait lose nothing by it."""
    slow = Slow()
    threads = SigningThreads(slow.sign, 1, most_waiting=3)
    told: list[bytes | Exception] = []
    threads.submit(b"00", told.append)
    await slow.until_begun(b"00")
    for number in range(1, 4):
        threads.submit(b"%02d" % number, told.append)
    with pytest.raises(SignerBusy, match="3 signatures"):
        threads.submit(b"04", told.append)
    with pytest.raises(SignerBusy):
        await threads.sign(b"05")
    slow.permit(4)
    threads.close()
    await threads_ended(threads)
    assert told == [b"00", b"10", b"20", b"30"]


async def test_somebody_who_cannot_be_told() -> None:
    """A defect of one who is told is reported by the event loop, and keeps nobody else from his signature."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    defect = ValueError("a defect")

    def broken(_result: bytes | Exception) -> None:
        raise defect

    slow = Slow()
    threads = SigningThreads(slow.sign, 1, together_seconds=60)
    told: list[bytes | Exception] = []
    threads.submit(b"0", told.append)
    await slow.until_begun(b"0")
    threads.submit(b"1", broken)
    threads.submit(b"2", told.append)
    threads.submit(b"3", told.append)
    slow.permit(4)
    threads.close()
    await threads_ended(threads)
    assert reported == [defect]
    assert told == [b"0", b"2", b"3"]


async def test_closing_ends_the_threads() -> None:
    """After `close`, what was asked before is still signed, and then no thread is left. Who asks later is refused at
    once, instead of waiting for ever.
    """
    threads = SigningThreads(reversed_octets, 3)
    last = asyncio.create_task(threads.sign(b"last"))
    await asyncio.sleep(0)
    threads.close()
    assert await last == b"tsal"
    await threads_ended(threads)
    with pytest.raises(SignerUnusable, match="closed"):
        await threads.sign(b"too late")


async def threads_ended(threads: SigningThreads) -> None:
    """Return when no thread is left, and everybody has been told."""
    for thread in threads._threads:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
