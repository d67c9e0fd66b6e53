"""Threads that sign with one key, for signatures that would hold up the event loop.

To wake the event loop costs a tenth of a signature of RSA-3072, and what it then does costs more when its caches are
cold. So a thread signs half of what is waiting before it gives the signatures back together, or what it can sign in a
moment (`together_seconds`) if that is less. Who asks alone gets his at once.

Promises: everybody who asked is told once, in the event loop in which he asked. Sources take turns (`line`). No more
wait than a key that takes its time signs in some seconds; who comes then is refused at once, unless his source has
fewer in the line than others have. What was asked before `close` is still signed.
"""

from __future__ import annotations

import asyncio
import threading
from queue import Empty
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from lakthan.errors import SignerBusy, SignerUnusable
from lakthan.keys.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    # Called once: with the signature, or with the reason why there is none.
    Told = Callable[[bytes | Exception], None]

_TOGETHER_SECONDS = 0.05
_MOST_WAITING = 1024


class _Asked(NamedTuple):
    """A message, who waits for its signature, and in which event loop."""

    loop: asyncio.AbstractEventLoop
    told: Told
    message: bytes


class SigningThreads:
    """`threads` of them around `sign`, which lets others run while it computes."""

    def __init__(
        self,
        sign: Callable[[bytes], bytes],
        threads: int,
        *,
        together_seconds: float = _TOGETHER_SECONDS,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._sign = sign
        self._together_seconds = together_seconds
        self._most_waiting = most_waiting
        self._asked: Line[_Asked] = Line()
        self._closed = False
        # Daemons: a program that ends does not wait for signatures that nobody will see.
        self._threads = [threading.Thread(target=self._work, name="signer", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, message: bytes, told: Told) -> None:
        """Have `message` signed by one of the threads; `told` hears of it in a later turn of the running event loop.

        Raises `SignerBusy` when too many wait, and `SignerUnusable` after `close`; then `told` is never called.
        """
        if self._closed:
            raise SignerUnusable("the key has been closed")
        if len(self._asked) >= self._most_waiting and self._asked.is_longest():
            raise SignerBusy(f"{self._most_waiting} signatures are waiting for the key")
        self._asked.put(_Asked(asyncio.get_running_loop(), told, message))

    async def sign(self, message: bytes) -> bytes:
        """The signature of `message`, made by one of the threads. Raises as `submit`, and what the key raises."""
        signature: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def told(result: bytes | Exception) -> None:
            if signature.done():  # who asked has left
                return
            if isinstance(result, bytes):
                signature.set_result(result)
            else:
                signature.set_exception(result)

        self.submit(message, told)
        return await signature

    def close(self) -> None:
        """Take no more, and end the threads after what was asked before."""
        self._closed = True
        for _ in self._threads:
            self._asked.end()

    def _work(self) -> None:
        while (first := self._asked.get()) is not None:
            until = perf_counter() + self._together_seconds
            more = len(self._asked) // 2
            made = [(first.told, self._make(first.message))]
            while len(made) <= more and perf_counter() < until:
                try:
                    following = self._asked.get_nowait()
                except Empty:  # another thread was quicker
                    break
                if following is None:  # another thread's, perhaps; there may be several
                    self._asked.end()
                    break
                if following.loop is not first.loop:
                    self._asked.put_back(following)
                    break
                made.append((following.told, self._make(following.message)))
            try:
                first.loop.call_soon_threadsafe(_tell, first.loop, made)
            except RuntimeError:  # the loop has been closed: nobody waits any more
                continue

    def _make(self, message: bytes) -> bytes | Exception:
        try:
            return self._sign(message)
        except Exception as error:  # noqa: BLE001 - it belongs to who asked
            return error


def _tell(loop: asyncio.AbstractEventLoop, made: list[tuple[Told, bytes | Exception]]) -> None:
    for told, result in made:
        try:
            told(result)
        except Exception as defect:  # noqa: BLE001 - the loop's to report, and nobody else's loss
            loop.call_exception_handler({"message": "a defect: somebody could not be told", "exception": defect})
