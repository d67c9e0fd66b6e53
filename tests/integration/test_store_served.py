"""Waiting until every responder answers by a change: by their word where they can give it, else by the bound."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import asyncpg
import pytest

from lakthan.errors import StoreUnavailable
from lakthan.store.feed import FEED_NAME, ChangeFeed, monotonic_seconds
from lakthan.store.pool import connect
from lakthan.store.served import Served, ServedWatch, measure_served
from support.database import OpenPool

HEARTBEAT = timedelta(milliseconds=200)
BOUND = timedelta(seconds=1)

# A responder process as far as the feed is concerned: it says when it is trusted, and again after every loss.
WORKER = f"""
import asyncio, sys
from datetime import timedelta
from lakthan.store.feed import ChangeFeed
from lakthan.store.pool import connect

ChangeFeed_ = ChangeFeed(
    lambda: connect(sys.argv[1], role="lakthan_responder", application_name="worker"),
    on_change=lambda record, changed_at: None,
    on_many_changes=lambda authority_id, changed_at: None,
    on_authority_change=lambda: None,
    on_ready=lambda: print("ready", flush=True),
    on_lost=lambda why: None,
    heartbeat=timedelta(seconds={HEARTBEAT.total_seconds()}),
    bound=timedelta(seconds={BOUND.total_seconds()}),
)
asyncio.run(ChangeFeed_.run())
"""


class Stack:
    """Feeds and watches on one database, ended with the test."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self._stack = stack

    async def feed(self) -> list[bool]:
        """A feed in this process, trusted; every change of many certificates that it hears adds to the list."""
        heard: list[bool] = []
        ready = asyncio.Event()
        feed = ChangeFeed(
            lambda: connect(self.url, role="lakthan_responder", application_name="test"),
            on_change=lambda _record, _changed_at: None,
            on_many_changes=lambda _authority_id, _changed_at: heard.append(True),
            on_authority_change=lambda: None,
            on_ready=ready.set,
            on_lost=lambda _why: None,
            heartbeat=HEARTBEAT,
            bound=BOUND,
        )
        self._alongside(feed.run())
        await ready.wait()
        return heard

    async def worker(self) -> asyncio.subprocess.Process:
        """A feed in a process of its own, trusted."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, self.url, stdout=asyncio.subprocess.PIPE
        )

        async def end() -> None:
            if process.returncode is None:
                process.kill()
            await process.wait()

        self._stack.push_async_callback(end)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return process

    def watch(self, *, role: str = "lakthan_registry") -> ServedWatch:
        """A watch that has just begun."""
        watch = ServedWatch(lambda: connect(self.url, role=role, application_name="watch"), bound=BOUND)
        self._alongside(watch.run())
        return watch

    async def settled_watch(self) -> ServedWatch:
        """A watch that knows everybody: one that all answered in time."""
        watch = self.watch()
        while not (await watch.wait_until_served()).acknowledged:
            pass
        return watch

    def _alongside(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)


@pytest.fixture
async def stack(database_url: str) -> AsyncIterator[Stack]:
    """Feeds and watches on the test's database."""
    async with AsyncExitStack() as exit_stack:
        yield Stack(database_url, exit_stack)


async def sessions_of_feeds(pool: asyncpg.Pool) -> list[int]:
    """The server's processes for the feeds of this test's database, oldest first."""
    rows = await pool.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1"
        " ORDER BY backend_start",
        FEED_NAME,
    )
    return [row["pid"] for row in rows]


async def change(pool: asyncpg.Pool) -> None:
    """What feeds hear as a change of very many certificates."""
    await pool.execute("""SELECT pg_notify('lakthan_status', '{"authority_id": 1, "all": true}')""")


async def test_everybody_says_so(stack: Stack, open_as: OpenPool) -> None:
    """With all feeds in order the wait ends by their word, and by then each has handed out what was committed before.

    Fifty changes, several waiting at once, with the least of roles: one word of each feed covers all that wait.
    """
    owner = await open_as(None)
    feeds = [await stack.feed() for _ in range(3)]
    watch = await stack.settled_watch()
    for number in range(1, 51):
        await change(owner)
        results = await asyncio.gather(*(watch.wait_until_served() for _ in range(4)))
        assert [len(heard) for heard in feeds] == [number] * 3
        assert {(each.acknowledged, each.workers) for each in results} == {(True, 3)}


@pytest.mark.parametrize("role", ["lakthan_responder", "lakthan_tsa"])
async def test_the_watch_needs_no_rights(stack: Stack, role: str) -> None:
    """It finds and asks the feeds whichever role it acts as."""
    await stack.feed()
    watch = stack.watch(role=role)
    served = await watch.wait_until_served()
    while not served.acknowledged:
        served = await watch.wait_until_served()
    assert served.workers == 1


async def test_a_stopped_worker_is_waited_for_by_the_bound(stack: Stack, open_as: OpenPool) -> None:
    """A process that stands still gives no word: the wait ends by the bound. When it goes on, its word counts again."""
    await stack.feed()
    worker = await stack.worker()
    watch = await stack.settled_watch()
    worker.send_signal(signal.SIGSTOP)
    started = monotonic_seconds()
    served = await watch.wait_until_served()
    assert not served.acknowledged
    assert served.workers == 2
    assert monotonic_seconds() - started >= BOUND.total_seconds()
    worker.send_signal(signal.SIGCONT)
    while not served.acknowledged:
        served = await watch.wait_until_served()


async def test_a_killed_worker_is_counted_until_its_trust_has_run_out(stack: Stack, open_as: OpenPool) -> None:
    """The session of a process that was killed is gone, which proves nothing yet: only after the bound nobody waits
    for it any more.
    """
    owner = await open_as(None)
    await stack.feed()
    worker = await stack.worker()
    watch = await stack.settled_watch()
    worker.kill()
    await worker.wait()
    while len(await sessions_of_feeds(owner)) > 1:  # noqa: ASYNC110 - the server's list, there is no event
        await asyncio.sleep(0.005)
    first = await watch.wait_until_served()
    assert first.workers == 2
    assert not first.acknowledged
    served = first
    while not served.acknowledged:
        served = await watch.wait_until_served()
    assert served.workers == 1


async def test_a_worker_whose_connection_is_cut_while_it_stands_still(stack: Stack, open_as: OpenPool) -> None:
    """The worst case: the process does not know that its connection is gone, and nobody sees its session any more.

    A watch that has known it waits for the bound, and so does one that has only just begun and finds nothing.
    """
    owner = await open_as(None)
    worker = await stack.worker()
    [pid] = await sessions_of_feeds(owner)
    watch = await stack.settled_watch()
    worker.send_signal(signal.SIGSTOP)
    await owner.execute("SELECT pg_terminate_backend($1)", pid)
    while await sessions_of_feeds(owner):  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.005)
    newcomer = stack.watch()
    started = monotonic_seconds()
    both = await asyncio.gather(watch.wait_until_served(), newcomer.wait_until_served())
    assert monotonic_seconds() - started >= BOUND.total_seconds()
    assert not both[0].acknowledged
    assert both[1].seconds >= BOUND.total_seconds() - 0.1  # it began a moment before it was asked
    worker.send_signal(signal.SIGCONT)
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"ready\n"
    while (await watch.wait_until_served()).workers != 1:
        pass


async def test_a_cut_connection_of_a_healthy_worker(stack: Stack, open_as: OpenPool) -> None:
    """The worker comes back on a new connection; its old one is waited for by the bound and then forgotten."""
    owner = await open_as(None)
    await stack.feed()
    watch = await stack.settled_watch()
    [pid] = await sessions_of_feeds(owner)
    await owner.execute("SELECT pg_terminate_backend($1)", pid)
    served = await watch.wait_until_served()
    assert not served.acknowledged
    while not (served.acknowledged and served.workers == 1):
        served = await watch.wait_until_served()


async def test_a_new_worker_is_heard_of_at_once(stack: Stack) -> None:
    """A feed that has become trusted is among those asked, however soon after it the change comes."""
    watch = await stack.settled_watch()
    for workers in range(1, 6):
        await stack.feed()
        served = await watch.wait_until_served()
        assert (served.acknowledged, served.workers) == (True, workers)


async def test_an_impostor_cannot_make_anything_served(stack: Stack, open_as: OpenPool) -> None:
    """An answer counts for the session that gave it: whoever answers in the name of all speaks for nobody else."""
    forger = await open_as("lakthan_tsa")
    worker = await stack.worker()
    watch = await stack.settled_watch()
    worker.send_signal(signal.SIGSTOP)
    overheard: list[str] = []
    async with forger.acquire() as connection:
        await connection.add_listener("lakthan_ask", lambda _c, _p, _ch, ask: overheard.append(str(ask)))
        waiting = asyncio.ensure_future(watch.wait_until_served())
        while not waiting.done():
            await connection.fetchval("SELECT pg_notify('lakthan_served', $1)", " ".join(overheard[-50:]))
            await asyncio.sleep(0.01)
        assert overheard
        assert not (await waiting).acknowledged
        await connection.remove_listener("lakthan_ask", lambda *_: None)
        await connection.reset()
    worker.send_signal(signal.SIGCONT)


async def test_an_impostor_cannot_ask_ahead(stack: Stack, open_as: OpenPool) -> None:
    """Whoever makes the responders answer questions that were not asked yet gets nothing by it: what they have taken
    in before a change says nothing about the change.
    """
    forger = await open_as("lakthan_tsa")
    worker = await stack.worker()
    watch = await stack.settled_watch()
    overheard: list[str] = []
    answered: list[str] = []
    async with forger.acquire() as connection:
        try:
            await connection.add_listener("lakthan_ask", lambda _c, _p, _ch, ask: overheard.append(str(ask)))
            await connection.add_listener("lakthan_served", lambda _c, _p, _ch, ask: answered.append(str(ask)))
            assert (await watch.wait_until_served()).acknowledged
            await until(lambda: bool(overheard))
            name, mark, last = overheard[-1].partition("x")
            ahead = [f"{name}{mark}{number}" for number in range(50)] + [name, f"{name}x", f"{name}xy", f"{last}0"]
            for ask in ahead:
                await connection.execute("SELECT pg_notify('lakthan_ask', $1)", ask)
            await until(lambda: ahead[-1] in " ".join(answered).split())
            worker.send_signal(signal.SIGSTOP)
            assert not (await watch.wait_until_served()).acknowledged
        finally:
            worker.send_signal(signal.SIGCONT)
            await connection.reset()


async def test_without_its_own_connection_the_watch_waits_for_the_bound(stack: Stack, open_as: OpenPool) -> None:
    """A watch that cannot ask anybody, or never ran, still keeps its promise, by the bound; and it comes back."""
    owner = await open_as(None)
    await stack.feed()
    watch = await stack.settled_watch()
    await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'watch'")
    assert not (await watch.wait_until_served()).acknowledged
    while not (await watch.wait_until_served()).acknowledged:
        pass

    async def nowhere() -> asyncpg.Connection:
        raise StoreUnavailable("there is no database")

    idle = ServedWatch(nowhere, bound=BOUND)
    assert not (await idle.wait_until_served()).acknowledged


async def test_measured_again_and_again(stack: Stack) -> None:
    """The registry measures by itself, without any change, how long a change takes to be served."""
    await stack.feed()
    watch = await stack.settled_watch()
    seen: list[Served] = []
    measuring = asyncio.ensure_future(measure_served(watch, seen.append, every=timedelta(milliseconds=5)))
    await until(lambda: len(seen) >= 5)
    measuring.cancel()
    assert {(each.acknowledged, each.workers) for each in seen} == {(True, 1)}
    assert all(0 < each.seconds < BOUND.total_seconds() for each in seen)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; the test's own time limit ends a wait for what never comes."""
    while not condition():  # noqa: ASYNC110 - the conditions are properties
        await asyncio.sleep(0.005)
