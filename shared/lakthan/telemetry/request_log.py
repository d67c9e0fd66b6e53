"""The lines about requests: a sample of those that were answered, and every one that was refused or says *revoked*.

A line has an id of its own, drawn now, and nothing that names a client. How many lines there are in a second is bounded
as for all events (`lakthan.telemetry.logs`). Where requests are counted in plain numbers the sample costs one
comparison (`interval`): a call is made only for those that get a line.

It writes nothing before a process has been told its share: a service that a test runs is silent.
"""

from __future__ import annotations

import math
import secrets

from lakthan.telemetry.logs import log


class RequestLog:
    """What a process says of its requests."""

    def __init__(self) -> None:
        self._every = self._notable_every = self._left = math.inf
        self._names_certificates = True

    def use(self, share: float, *, names_certificates: bool) -> None:
        """`share` of the answered requests get a line."""
        self._every = self._left = 1 / share if share else math.inf
        self._notable_every = 1
        self._names_certificates = names_certificates

    def interval(self, *, notable: bool) -> float:
        """After how many requests of one kind the next one gets a line."""
        return self._notable_every if notable else self._every

    def due(self, *, notable: bool = False) -> bool:
        """Whether the request that was answered now gets a line; to be asked once for each."""
        if notable:
            return self._notable_every == 1
        self._left -= 1
        if self._left > 0:
            return False
        self._left += self._every
        return True

    def note(self, *, outcome: str, certificate: str | None = None, **what: object) -> None:
        """Write the line. `certificate`: which one was asked about; `what`: whatever else is to be said, None for
        nothing.
        """
        if self._notable_every != 1:
            return
        if certificate is not None and self._names_certificates:
            what["certificate"] = certificate
        log.info("request", request_id=secrets.token_hex(8), outcome=outcome, **what)


request_log = RequestLog()
