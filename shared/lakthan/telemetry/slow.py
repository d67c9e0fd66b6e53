"""Slow requests: one line of the log each, and the same id as an exemplar of the histogram that counts them.

So a peak on a dashboard leads to a line that says what was asked. The id is drawn when the request turns out to be
slow: it says nothing about the client, and a request that is not slow costs one comparison. At most one a second is
noted, because when everything is slow the first few say as much as all; the histogram counts them all.
"""

from __future__ import annotations

import secrets
from time import monotonic

from lakthan.telemetry.logs import log
from lakthan.telemetry.plain import Series

_SECONDS_BETWEEN = 1.0


class Slow:
    """Counts requests into `series`, and notes those that took `bound_seconds` or longer."""

    def __init__(self, series: Series, bound_seconds: float) -> None:
        self._observe = series.observe
        self._exemplify = series.exemplify
        self._bound_seconds = bound_seconds
        self._not_before = 0.0

    def took(self, seconds: float, **what: object) -> None:
        """A request is answered. `what`: for its line, if it was slow; nothing that names a client."""
        self._observe(seconds)
        if seconds >= self._bound_seconds:
            self._note(seconds, what)

    def _note(self, seconds: float, what: dict[str, object]) -> None:
        now = monotonic()
        if now < self._not_before:
            return
        self._not_before = now + _SECONDS_BETWEEN
        request_id = secrets.token_hex(8)
        self._exemplify(seconds, request_id)
        log.warning("a slow request", request_id=request_id, seconds=round(seconds, 6), **what)
