"""Group commit: a token is on durable record before it leaves the house, and that costs one commit for many tokens.

Promises: nobody hears that a record is there before it is committed. Whatever arrives in one turn of the event loop, or
while a commit runs, goes into one commit. A commit that fails, fails for exactly those who waited for it, and for all
of them: the batch is one transaction, so none of its records is there (or, when the connection broke during COMMIT,
some are, of tokens that nobody got: that does no harm). Nothing is tried again here, because the client asks again and
gets a new serial number.

A duplicate serial number is treated no differently: it must not happen, nobody in the batch is told that it was
recorded, and the log says it. Trying the records one by one could save the others; it is not worth code that would
never run. A frozen unit in the batch is told to everybody in it too: whoever stamped with another unit stamps again.

Refuses to know: what a record says, and which database it goes to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.tokens import DuplicateSerial, TSUFrozen
from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lakthan.store.records import TokenRecord

    Append = Callable[[Sequence[TokenRecord]], Awaitable[None]]
    Committed = Callable[[int, float], None]
    # Called once, after the commit: with None when the record is durable, else with the reason why it is not.
    Told = Callable[[Exception | None], None]

# Half a second of the fastest service measured; who waits longer is better told to come again.
_MOST_WAITING = 8192
_MOST_IN_ONE_COMMIT = 1024
_RETRY_SECONDS = 1.0


class Recorder:
    """`append` commits records in one transaction. `committed` hears the size of each and the seconds it took.

    `problem`: why the last commit failed, '' when it did not: for readiness.
    """

    def __init__(
        self,
        append: Append,
        *,
        committed: Committed | None = None,
        most_waiting: int = _MOST_WAITING,
        most_in_one_commit: int = _MOST_IN_ONE_COMMIT,
    ) -> None:
        self._append = append
        self._committed = committed
        self._most_waiting = most_waiting
        self._most_in_one_commit = most_in_one_commit
        self._waiting: deque[tuple[Sequence[TokenRecord], Told]] = deque()
        self._records = 0  # of those
        self._commits: asyncio.Task[None] | None = None
        self._closed = False
        self.problem = ""

    def submit(self, records: Sequence[TokenRecord], told: Told) -> None:
        """Put `records` into the next commit, all into the same; `told` hears of them, once: one of the errors of
        `record`, or None.

        Raises `StoreUnavailable` when too many are waiting; then `told` is never called.
        """
        if self._closed:
            raise StoreUnavailable("the service is stopping")
        if self._records + len(records) > self._most_waiting:
            raise StoreUnavailable(f"{self._most_waiting} tokens are waiting to be recorded")
        self._waiting.append((records, told))
        self._records += len(records)
        if self._commits is None:
            self._commits = asyncio.get_running_loop().create_task(self._commit_all(), name="commit timestamp tokens")

    async def record(self, record: TokenRecord) -> None:
        """Return when `record` is durable. Raises `StoreUnavailable` when it is not, or too many are waiting,
        `DuplicateSerial` when a serial number of the same commit is on record already, and `TSUFrozen` when a unit of
        the same commit was frozen.

        A caller that is cancelled stops waiting; its record is committed all the same, because a token was signed.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self.submit((record,), told)
        await done

    async def watch(self) -> None:
        """After a failure, try until the log can be written again (by recording nothing); until cancelled.

        A service that is not ready gets no requests, so no request can find out that all is well again.
        """
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            if self.problem:
                try:
                    await self._append([])
                except Exception as error:  # noqa: BLE001 - it was logged with the tokens that it cost
                    self.problem = str(error) or type(error).__name__
                else:
                    self.problem = ""
                    log.info("tokens can be recorded again")

    async def aclose(self) -> None:
        """Take no more, and return when everything that waited is committed or refused."""
        self._closed = True
        if self._commits is not None:
            await self._commits
        await asyncio.sleep(0)  # until those of the last commits have been told

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                records, batch = self._next_batch()
                failure = await self._commit(records)
                if self._waiting:  # the next commit leaves first: the database would have nothing to do meanwhile
                    asyncio.get_running_loop().call_soon(_tell, batch, failure)
                else:
                    _tell(batch, failure)
        finally:
            self._commits = None

    def _next_batch(self) -> tuple[list[TokenRecord], list[Told]]:
        """What the next commit has, and who waits for it. What came together stays together."""
        records: list[TokenRecord] = []
        batch: list[Told] = []
        while self._waiting and (not batch or len(records) + len(self._waiting[0][0]) <= self._most_in_one_commit):
            together, told = self._waiting.popleft()
            records += together
            batch.append(told)
        self._records -= len(records)
        return records, batch

    async def _commit(self, records: list[TokenRecord]) -> Exception | None:
        """Why these are not on record; None when they are."""
        clock = asyncio.get_running_loop().time
        started = clock()
        failure: Exception | None = None
        try:
            await self._append(records)
        except TSUFrozen as error:  # the log can be written, but not by that unit
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear it
            failure = error
            self.problem = str(error) or type(error).__name__
            log.error(
                "tokens not recorded", tokens=len(records), problem=self.problem, exc_info=_unless_expected(error)
            )
        else:
            self.problem = ""
            if self._committed is not None:
                self._committed(len(records), clock() - started)
        return failure


def _tell(batch: list[Told], failure: Exception | None) -> None:
    for told in batch:
        try:
            told(None if failure is None else _not_recorded(failure))
        except Exception:  # noqa: BLE001 - a defect in one of them must not keep the others waiting
            log.exception("a defect: somebody could not be told of a commit")


def _unless_expected(error: Exception) -> Exception | None:
    return None if isinstance(error, StoreUnavailable) else error


def _not_recorded(error: Exception) -> Exception:
    # One exception for each waiter: a shared one would collect the traceback of everybody who raises it.
    failure: Exception
    if isinstance(error, TSUFrozen):
        failure = TSUFrozen(error.tsu)
    else:
        kind = DuplicateSerial if isinstance(error, DuplicateSerial) else StoreUnavailable
        failure = kind("the token could not be recorded")
    failure.__cause__ = error
    return failure
