"""The quick histogram says the same as prometheus_client's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from lakthan.telemetry.plain import PlainHistogram

BUCKETS = (0.00001, 0.001, 0.5, 1.0, 10.0)


def shown(registry: CollectorRegistry) -> list[str]:
    """What a scrape shows, without the time of its making, which only prometheus_client's has."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.one_of(st.sampled_from(BUCKETS), st.floats(0, 100)), min_size=1))
def test_the_same_numbers(values: list[float]) -> None:
    """With and without a label, also for values that are exactly on a bound."""
    plain, known = CollectorRegistry(), CollectorRegistry()
    ours = PlainHistogram("x_seconds", "d", buckets=BUCKETS, registry=plain)
    ours_labelled = PlainHistogram("y_seconds", "d", buckets=BUCKETS, registry=plain, label="key")
    theirs = Histogram("x_seconds", "d", buckets=BUCKETS, registry=known)
    theirs_labelled = Histogram("y_seconds", "d", ["key"], buckets=BUCKETS, registry=known)
    for value in values:
        ours.labels().observe(value)
        ours_labelled.labels("one").observe(value)
        theirs.observe(value)
        theirs_labelled.labels("one").observe(value)
    assert shown(plain) == shown(known)
