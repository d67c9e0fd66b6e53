"""Quotas: kind to bursts, firm in the long run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lakthan_tsa.quota import Quota


def granted(quota: Quota, instants: list[float], client: str = "a") -> int:
    """How many of the requests at these instants may go on."""
    return sum(1 for at in instants if not quota.take(client, at))


def test_a_burst_and_then_the_rate() -> None:
    """After a pause a client may ask for the whole burst at once, and then as often as agreed. TSA-Q7."""
    quota = Quota(2.0, 200)
    assert granted(quota, [1000.0] * 250) == 200
    assert quota.take("a", 1000.0) == 0.5
    assert granted(quota, [1000.5, 1001.0, 1001.25, 1001.5]) == 3
    assert granted(quota, [2000.0] * 250) == 200


def test_the_wait_is_the_truth() -> None:
    """A client that comes back after the seconds that it was told may go on."""
    quota = Quota(0.25, 3)
    assert granted(quota, [0.0] * 3) == 3
    wait = quota.take("a", 0.0)
    assert wait == 4.0
    assert quota.take("a", wait) == 0.0


def test_clients_do_not_share() -> None:
    """What one client takes, another does not lack."""
    quota = Quota(1.0, 1)
    assert [quota.take(client, 0.0) == 0.0 for client in "aabb"] == [True, False, True, False]


@given(st.lists(st.floats(0, 100), max_size=300))
def test_never_more_than_agreed(gaps: list[float]) -> None:
    """Whatever the client does: never more than the burst and what time has brought."""
    instants, at = [], 0.0
    for gap in gaps:
        at += gap / 50
        instants.append(at)
    assert granted(Quota(2.0, 5), instants) <= 5 + 2.0 * at + 1e-6


def test_memory_is_bounded() -> None:
    """A million clients do not fill the memory; those with a full bucket are forgotten first, and lose nothing."""
    quota = Quota(1.0, 2, most_clients=10)
    assert granted(quota, [0.0] * 3, "busy") == 2
    for number in range(100):
        assert quota.take(f"passing {number}", number * 0.01) == 0.0
        assert len(quota._full_at) <= 10
    quota = Quota(1.0, 2, most_clients=10)
    for number in range(10):
        assert quota.take(f"early {number}", 0.0) == 0.0
    assert granted(quota, [1.5] * 3, "busy") == 2
    assert "early 0" not in quota._full_at
    assert quota.take("busy", 1.5) > 0
