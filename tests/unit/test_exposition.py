"""What a scraper gets: the format that it prefers, and examples of slow requests with the id that the log has."""

from __future__ import annotations

import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families

from lakthan.telemetry.exposition import exposition, prefers_openmetrics
from lakthan.telemetry.plain import PlainHistogram
from lakthan.telemetry.slow import Slow
from lakthan.web.admin import admin_application

# As they come from Prometheus 2.42 and 3.
_PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
_PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;"
    "q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (_PROMETHEUS_2, True),
        (_PROMETHEUS_3, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Q=0.5, text/plain; q=0.4", True),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0, */*", False),
        ("application/openmetrics-text,text/plain", False),
        ("application/openmetrics-text;version=2.0.0,text/plain;q=0.1", False),
        ("application/openmetrics-text;q=much", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("*/*", False),
        ("", False),
        (",;=,", False),
    ],
)
def test_what_is_preferred(accept: str, openmetrics: bool) -> None:  # noqa: FBT001 - the expectation
    """The weights decide, not the order; who has no wish, or two alike, gets the text that everything reads."""
    assert prefers_openmetrics(accept) is openmetrics


def _counted() -> tuple[CollectorRegistry, Slow]:
    registry = CollectorRegistry()
    Counter("x", "d", ["outcome"], registry=registry).labels("tryLater").inc()
    seconds = PlainHistogram("x_seconds", "d", buckets=(0.1, 1.0), registry=registry)
    return registry, Slow(seconds.labels(), 0.5)


def test_both_formats_say_the_same() -> None:
    """Strict readers of either get the same samples; only OpenMetrics has an end and examples, and neither the time at
    which a counter was made.
    """
    registry, slow = _counted()
    slow.took(0.01)
    slow.took(0.7, method="GET")
    plain, of_plain = exposition(registry, "")
    fancy, of_fancy = exposition(registry, _PROMETHEUS_2)
    assert of_plain["Content-Type"].startswith("text/plain; version=0.0.4")
    assert of_fancy["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert of_plain["Vary"] == of_fancy["Vary"] == "Accept"
    samples = [
        {(s.name, *s.labels.items(), s.value) for f in parse(body.decode()) for s in f.samples}
        for parse, body in ((families, plain), (open_families, fancy))
    ]
    assert samples[0] == samples[1]
    assert fancy.endswith(b"# EOF\n")
    assert b"_created" not in plain + fancy
    assert b"request_id" in fancy
    assert b"request_id" not in plain


def test_a_slow_request_is_logged_with_its_example() -> None:
    """The histogram counts every request; one that is slow has a line, and its bucket an example with the same id. Of
    those within a second only the first is noted.
    """
    registry, slow = _counted()
    with structlog.testing.capture_logs() as lines:
        slow.took(0.49)
        slow.took(0.7, method="POST")
        slow.took(0.8)
    [line] = lines
    assert (line["event"], line["seconds"], line["method"]) == ("a slow request", 0.7, "POST")
    body, _ = exposition(registry, _PROMETHEUS_2)
    buckets = {
        sample.labels["le"]: sample
        for family in open_families(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.name == "x_seconds_bucket"
    }
    assert {le: sample.value for le, sample in buckets.items()} == {"0.1": 0, "1.0": 3, "+Inf": 3}
    example = buckets["1.0"].exemplar
    assert example is not None
    assert example.labels == {"request_id": line["request_id"]}
    assert example.value == 0.7
    assert [le for le, sample in buckets.items() if sample.exemplar] == ["1.0"]


async def test_the_admin_port_negotiates() -> None:
    """`/metrics` reads the field of the request, also when it comes in several lines."""
    registry, _ = _counted()
    async with TestClient(TestServer(admin_application(registry, dict))) as client:
        async with client.get("/metrics") as reply:
            assert reply.content_type == "text/plain"
        lines = [("Accept", "text/plain;q=0.5"), ("Accept", "application/openmetrics-text")]
        async with client.get("/metrics", headers=lines) as reply:
            assert reply.content_type == "application/openmetrics-text"
            assert (await reply.text()).endswith("# EOF\n")
