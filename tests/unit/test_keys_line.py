"""Who waits for a key: in turn for each who asks, and an end after everything."""

from __future__ import annotations

from contextvars import copy_context
from queue import Empty

import pytest

from lakthan.errors import SignerBusy
from lakthan.keys.line import Line, asker
from lakthan.keys.threads import SigningThreads


def put(line: Line[str], who: str, *waiting: str) -> None:
    """As a request of this source."""

    def ask() -> None:
        asker.set(who)
        for each in waiting:
            line.put(each)

    copy_context().run(ask)


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ([("a", "1", "2", "3")], "123"),
        ([("a", "1", "2", "3", "4"), ("b", "5")], "15234"),
        ([("a", "1", "2", "3"), ("b", "4", "5"), ("c", "6")], "146253"),
    ],
)
def test_turns(asked: list[tuple[str, ...]], order: str) -> None:
    """A thousand of one cost the next one's only question one turn; each one's own stay in their order."""
    line: Line[str] = Line()
    for who, *waiting in asked:
        put(line, who, *waiting)
    assert len(line) == len(order)
    assert "".join(str(line.get()) for _ in order) == order
    assert len(line) == 0
    with pytest.raises(Empty):
        line.get_nowait()


def test_the_end_comes_last() -> None:
    """What was asked before, and what was put back, comes first."""
    line: Line[str] = Line()
    put(line, "a", "1", "2")
    line.end()
    line.end()
    put(line, "b", "3")
    assert line.get() == "1"
    line.put_back("1")
    assert [line.get() for _ in range(5)] == ["1", "3", "2", None, None]


async def test_who_has_most_is_refused() -> None:
    """When the line is full a source with fewer than the others still comes in."""
    threads = SigningThreads(bytes, 0, most_waiting=4)

    def submit(who: str) -> None:
        asker.set(who)
        threads.submit(b"", lambda _: None)

    for _ in range(4):
        copy_context().run(submit, "flood")
    copy_context().run(submit, "honest")
    with pytest.raises(SignerBusy, match="4 signatures"):
        copy_context().run(submit, "flood")
    assert len(threads._asked) == 5
