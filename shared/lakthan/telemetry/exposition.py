"""The series of a process as a scraper wants to read them: Prometheus' text, or OpenMetrics, which has exemplars.

Promises: what the `Accept` field prefers by its weights (RFC 9110 §12.5.1), of the two that there are; who names
neither, or both alike, gets the old text, which everything reads. Prometheus names both and prefers OpenMetrics.

Series of the time at which a counter was made (`…_created`) are left out: they would double what Prometheus keeps, and
its `rate()` notices a restart without them.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

OPENMETRICS = "application/openmetrics-text"
_TEXT_RANGES = ("text/plain", "text/*", "*/*")
# Versions of OpenMetrics that 1.0.0 is an answer to; Prometheus asks for the draft as well.
_OPENMETRICS_VERSIONS = ("", "1.0.0", "0.0.1")

# For the whole process: prometheus_client knows no other way.
disable_created_metrics()  # type: ignore[no-untyped-call]


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, dict[str, str]]:
    """The body, and the header fields that say what it is. `accept`: the field of the request, '' for none."""
    if prefers_openmetrics(accept):
        body, content_type = openmetrics.generate_latest(registry), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
    else:
        body, content_type = generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
    return body, {"Content-Type": content_type, "Vary": "Accept"}


def prefers_openmetrics(accept: str) -> bool:
    """Whether that is what the field prefers. What cannot be read in it counts for nothing."""
    weights = {OPENMETRICS: 0.0, "text": 0.0}
    for offered in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in offered.split(";"))
        given = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        weight = _weight(given.get("q", "1"))
        if media_type == OPENMETRICS and given.get("version", "") in _OPENMETRICS_VERSIONS:
            weights[OPENMETRICS] = max(weights[OPENMETRICS], weight)
        elif media_type in _TEXT_RANGES:
            weights["text"] = max(weights["text"], weight)
    return weights[OPENMETRICS] > weights["text"]


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
