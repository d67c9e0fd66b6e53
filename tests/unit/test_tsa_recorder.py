"""Group commit: who waits for which commit, and who hears of its failure. The log is a script here, so that a commit
lasts as long as the test wants; the real database is in the service tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from lakthan.errors import StoreUnavailable
from lakthan.store.records import TokenRecord
from lakthan.store.tokens import DuplicateSerial
from lakthan_tsa.recorder import Recorder


def record_of(number: int) -> TokenRecord:
    """A record; only its number matters."""
    return TokenRecord(
        number.to_bytes(2, "big"), datetime.now(UTC), "1.2", "SHA-256", bytes(32), "tsu", "in sync", None, bytes(32)
    )


class Log:
    """Commits when told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.failures: list[Exception] = []

    async def append(self, records: Sequence[TokenRecord]) -> None:
        """See `TokenLog.append`."""
        self.batches.append([int.from_bytes(record.serial_number, "big") for record in records])
        await self.go.wait()
        if self.failures:
            raise self.failures.pop(0)


async def turn() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_arrives_during_a_commit_goes_into_the_next() -> None:
    """The first commit takes what is there; everything that comes while it runs shares the second one; nobody is told
    before their own commit is done.
    """
    log = Log()
    sizes: list[int] = []
    recorder = Recorder(log.append, committed=lambda tokens, _seconds: sizes.append(tokens))
    first = [asyncio.create_task(recorder.record(record_of(n))) for n in range(2)]
    await turn()
    second = [asyncio.create_task(recorder.record(record_of(n))) for n in range(2, 7)]
    await turn()
    assert log.batches == [[0, 1]]
    assert not any(task.done() for task in first + second)
    log.go.set()
    await asyncio.gather(*first, *second)
    assert log.batches == [[0, 1], [2, 3, 4, 5, 6]]
    assert sizes == [2, 5]


async def test_failure_reaches_exactly_those_who_waited() -> None:
    """A failed commit fails for its own tokens; the next one is tried, and granted."""
    log = Log()
    recorder = Recorder(log.append)
    first = asyncio.create_task(recorder.record(record_of(1)))
    await turn()
    second = asyncio.create_task(recorder.record(record_of(2)))
    await turn()
    log.failures = [StoreUnavailable("away")]
    log.go.set()
    with pytest.raises(StoreUnavailable):
        await first
    await second
    assert recorder.problem == ""


@pytest.mark.parametrize(
    ("failure", "heard"),
    [
        (StoreUnavailable("away"), StoreUnavailable),
        (DuplicateSerial("twice"), DuplicateSerial),
        (ValueError("a defect"), StoreUnavailable),
    ],
)
async def test_all_of_a_failed_commit_hear_it(failure: Exception, heard: type[Exception]) -> None:
    """Whatever goes wrong, everybody in the batch is refused: its records are one transaction."""
    log = Log()
    log.failures = [failure]
    log.go.set()
    recorder = Recorder(log.append)
    results = await asyncio.gather(*(recorder.record(record_of(n)) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [heard] * 3
    assert len({id(result) for result in results}) == 3
    assert recorder.problem


async def test_bounds() -> None:
    """A commit takes no more than its share, and beyond the queue's end tokens are refused at once."""
    log = Log()
    recorder = Recorder(log.append, most_waiting=5, most_in_one_commit=2)
    tasks = [asyncio.create_task(recorder.record(record_of(n))) for n in range(5)]
    await turn()
    tasks += [asyncio.create_task(recorder.record(record_of(n))) for n in range(5, 7)]
    await turn()
    with pytest.raises(StoreUnavailable, match="waiting"):
        await recorder.record(record_of(9))
    log.go.set()
    await asyncio.gather(*tasks)
    assert log.batches == [[0, 1], [2, 3], [4, 5], [6]]


async def test_cancelled_waiter() -> None:
    """A client that goes away disturbs nobody: its token is recorded, the others are told."""
    log = Log()
    recorder = Recorder(log.append)
    gone, stays = (asyncio.create_task(recorder.record(record_of(n))) for n in range(2))
    await turn()
    gone.cancel()
    await turn()
    log.go.set()
    await stays
    assert gone.cancelled()
    assert log.batches == [[0, 1]]


async def test_close_drains() -> None:
    """Closing lets everything that waits be committed, and takes nothing more."""
    log = Log()
    recorder = Recorder(log.append, most_in_one_commit=1)
    tasks = [asyncio.create_task(recorder.record(record_of(n))) for n in range(3)]
    await turn()
    closing = asyncio.create_task(recorder.aclose())
    await turn()
    with pytest.raises(StoreUnavailable, match="stopping"):
        await recorder.record(record_of(9))
    log.go.set()
    await closing
    await asyncio.gather(*tasks)
    assert log.batches == [[0], [1], [2]]


async def test_what_one_turn_brings_shares_a_commit() -> None:
    """Tokens whose signatures a thread gives back together share one commit, also when no commit was running."""
    log = Log()
    log.go.set()
    recorder = Recorder(log.append)
    heard: list[Exception | None] = []
    for number in range(20):
        asyncio.get_running_loop().call_soon(recorder.submit, [record_of(number)], heard.append)
    await turn()
    assert log.batches == [list(range(20))]
    assert heard == [None] * 20


async def test_somebody_who_cannot_be_told() -> None:
    """A defect in one of those who wait keeps nobody else from hearing of the commit."""
    log = Log()
    log.go.set()
    recorder = Recorder(log.append)
    heard: list[Exception | None] = []

    def broken(_error: Exception | None) -> None:
        raise ValueError

    recorder.submit([record_of(1)], broken)
    recorder.submit([record_of(2)], heard.append)
    await recorder.aclose()
    assert heard == [None]


async def test_what_came_together_stays_together() -> None:
    """Records that are given together are in one commit and told of once, also where they alone are more than a commit
    has; more than may wait are refused, all of them.
    """
    log = Log()
    recorder = Recorder(log.append, most_waiting=9, most_in_one_commit=4)
    heard: list[str] = []
    for name, numbers in (("first", range(3)), ("second", range(3, 5)), ("third", range(5, 9))):
        recorder.submit([record_of(n) for n in numbers], lambda error, name=name: heard.append(f"{name} {error}"))  # type: ignore[misc]
    with pytest.raises(StoreUnavailable, match="9 tokens are waiting"):
        recorder.submit([record_of(10)], lambda _error: heard.append("never"))
    log.failures.append(StoreUnavailable("gone"))
    log.go.set()
    await recorder.aclose()
    assert log.batches == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    assert sorted(heard) == ["first the token could not be recorded", "second None", "third None"]
    large = Recorder(Log().append, most_in_one_commit=2)
    large.submit([record_of(n) for n in range(5)], lambda _error: None)
    assert len(large._next_batch()[0]) == 5
