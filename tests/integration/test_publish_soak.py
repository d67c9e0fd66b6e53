"""The soak of `./run publish-soak`, small: the schedule holds, and the oracle notices when it cannot."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from support.publish_soak import Plan, Soak, table, write_svg

MINUTE = timedelta(minutes=1)


async def test_nothing_expires_while_the_key_is_fast_enough(database_url: str, tmp_path: Path) -> None:
    """From an import over the first answers through a whole refresh interval, with a key that is busy five sixths of
    the time: no answer ends, the key is never asked for more than it can do, and none gets older than the interval.
    """
    plan = Plan(
        500, rate=20, refresh=MINUTE, validity=3 * MINUTE, rounds=1.2, revocations=10, sample=timedelta(seconds=5)
    )
    found = await Soak(plan, database_url, tmp_path, lambda *_: None).run()
    assert (found.rows, found.expired, found.mismatched, found.stale, found.refused) == (1000, 0, 0, 0, 0)
    assert found.most_in_a_second <= 22
    assert found.oldest <= MINUTE + timedelta(seconds=5)
    assert found.least_left_seconds > 100
    assert found.revoked == 10
    assert found.verified == 1000
    assert table(plan, found).row_count > 10
    write_svg(tmp_path / "soak.svg", plan, found)
    assert (tmp_path / "soak.svg").read_text().count("<polyline") == 2


async def test_the_oracle_notices_a_key_that_is_too_slow(database_url: str, tmp_path: Path) -> None:
    """With twice as many answers as the key can refresh, some end before they are replaced."""
    plan = Plan(
        500,
        rate=10,
        refresh=MINUTE * 0.8,
        validity=MINUTE,
        rounds=3,
        revocations=0,
        in_full_swing=True,
        sample=timedelta(seconds=5),
    )
    found = await Soak(plan, database_url, tmp_path, lambda *_: None).run()
    assert found.expired > 0
    assert found.refused == 0
