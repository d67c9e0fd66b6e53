"""When a CRL's URL is asked again, and when somebody should look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lakthan_registry.sources import Polling, is_overdue, pause

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


@pytest.mark.parametrize(
    ("failures", "left", "wanted"),
    [
        (0, None, 15 * MINUTE),
        (0, 10 * HOUR, 15 * MINUTE),
        (0, 20 * MINUTE, 5 * MINUTE),
        (0, 30 * SECOND, 10 * SECOND),
        (0, -HOUR, 15 * MINUTE),
        (1, None, 5 * SECOND),
        (2, 10 * HOUR, 10 * SECOND),
        (3, None, 20 * SECOND),
        (50, None, 5 * MINUTE),
        (50, 4 * MINUTE, MINUTE),
    ],
)
def test_the_next_try_is_sooner_as_the_end_comes_near(failures: int, left: timedelta | None, wanted: timedelta) -> None:
    """A quarter of the declared delay when all is well; after failures ever longer pauses; never beyond a quarter of
    what is left of the CRL.
    """
    assert pause(failures, None if left is None else NOW + left, NOW, HOUR, Polling()) == wanted


@pytest.mark.parametrize(
    ("left", "failures", "overdue"),
    [
        (None, 0, False),
        (None, 1, True),
        (20 * HOUR, 5, False),
        (5 * HOUR, 0, False),
        (5 * HOUR, 1, True),
        (2 * HOUR, 0, True),
        (-SECOND, 0, True),
    ],
)
def test_the_alarm_comes_before_the_end(left: timedelta | None, failures: int, overdue: bool) -> None:  # noqa: FBT001
    """Of a CRL for a day: in its last quarter when the newest try failed, in its last tenth in any case."""
    end = None if left is None else NOW + left
    assert is_overdue(None if end is None else end - 24 * HOUR, end, failures, NOW) is overdue
