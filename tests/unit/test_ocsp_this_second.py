"""What was said this second: kept as long as it holds, and not more of it than fits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lakthan_ocsp import this_second
from lakthan_ocsp.cache import Answer
from lakthan_ocsp.governor import MaxAge, Span
from lakthan_ocsp.metrics import Tally
from lakthan_ocsp.this_second import Said, ThisSecond

NOW = 1_900_000_000


def said(*, since: float = NOW - 10.0, head_until: float = NOW + 10.0, octets: int = 1000) -> Said:
    """A response that holds from `since` until its head would be another."""
    start = datetime.fromtimestamp(NOW, UTC)
    answer = Answer(
        b"",
        Span(start, start, start + timedelta(hours=1), start + timedelta(hours=1)),
        MaxAge(timedelta(hours=1)),
        ("good",),
        (None,),
        authoritative=True,
        since=since,
        until=NOW + 3600.0,
        head_until=head_until,
    )
    return Said(answer, bytes(octets), Tally("POST", "cache", ("good",), None))


def test_one_second_after_the_other() -> None:
    """What is noted in one second is there until something is noted in another one, earlier or later."""
    table = ThisSecond()
    for second in (NOW, NOW + 1, NOW):
        first, last = said(), said()
        table.note(b"first", first, second)
        table.note(b"last", last, second + 0.999)
        assert table.by_request == {b"first": first, b"last": last}
        assert (table.begins, table.ends) == (second, second + 1)


@pytest.mark.parametrize(
    ("since", "head_until"), [(NOW - 10.0, NOW + 0.99), (NOW + 0.25, NOW + 10.0), (NOW - 10.0, 0.0)]
)
def test_only_what_holds_all_second(since: float, head_until: float) -> None:
    """A response whose max-age would be another before the second is over is not kept, and neither is one that began
    within it, which a clock set back would give too early.
    """
    table = ThisSecond()
    table.note(b"request", said(since=since, head_until=head_until), NOW + 0.5)
    assert not table.by_request
    table.note(b"request", said(since=NOW, head_until=NOW + 1.0), NOW + 0.5)
    assert list(table.by_request) == [b"request"]


def test_bounded_in_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many different requests a second brings, memory stays bounded; the next second starts empty."""
    monkeypatch.setattr(this_second, "_MOST_OCTETS", 50_000)
    table = ThisSecond()
    for second in (NOW, NOW + 1):
        for n in range(1000):
            table.note(b"request %d" % n, said(octets=2000), second)
        kept = sum(len(request) + len(entry.response) for request, entry in table.by_request.items())
        assert 30_000 < kept <= 50_000
    table.note(b"huge", said(octets=60_000), NOW + 2)
    assert not table.by_request
