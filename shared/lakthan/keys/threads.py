"""Threads that sign with one key, for signatures that would hold up the event loop.

A thread takes what is asked as it comes, and gives back together what it has made within three milliseconds: to wake
the event loop for every single signature costs a tenth of one of RSA-3072. Who asks alone gets his at once.
"""

from __future__ import annotations

import asyncio
import threading
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_TOGETHER_SECONDS = 0.003


class _Asked(NamedTuple):
    """A message, who waits for its signature, and in which event loop."""

    loop: asyncio.AbstractEventLoop
    signature: asyncio.Future[bytes]
    message: bytes


class _Made(NamedTuple):
    """A signature, or why there is none."""

    asked: _Asked
    signature: bytes
    error: Exception | None


class SigningThreads:
    """`threads` of them around `sign`, which lets others run while it computes."""

    def __init__(self, sign: Callable[[bytes], bytes], threads: int) -> None:
        self._sign = sign
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        # Daemons: a program that ends does not wait for signatures that nobody will see.
        self._threads = [threading.Thread(target=self._work, name="signer", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def sign(self, message: bytes) -> bytes:
        """The signature of `message`, made by one of the threads."""
        loop = asyncio.get_running_loop()
        asked = _Asked(loop, loop.create_future(), message)
        self._asked.put(asked)
        return await asked.signature

    def close(self) -> None:
        """End the threads after what was asked before."""
        for _ in self._threads:
            self._asked.put(None)

    def _work(self) -> None:
        while (first := self._asked.get()) is not None:
            made = [self._make(first)]
            until = perf_counter() + _TOGETHER_SECONDS
            following: _Asked | None = first
            while perf_counter() < until:
                try:
                    following = self._asked.get_nowait()
                except Empty:
                    break
                if following is None or following.loop is not first.loop:
                    self._asked.put(following)  # the end, or another loop's turn
                    break
                made.append(self._make(following))
            try:
                first.loop.call_soon_threadsafe(_give, made)
            except RuntimeError:  # the loop has been closed: nobody waits any more
                continue

    def _make(self, asked: _Asked) -> _Made:
        try:
            return _Made(asked, self._sign(asked.message), None)
        except Exception as error:  # noqa: BLE001 - it belongs to who asked
            return _Made(asked, b"", error)


def _give(made: list[_Made]) -> None:
    for each in made:
        waiting = each.asked.signature
        if waiting.done():  # who asked has left
            continue
        if each.error is None:
            waiting.set_result(each.signature)
        else:
            waiting.set_exception(each.error)
