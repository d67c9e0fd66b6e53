"""Which responder of each authority speaks now: of a key list one at a time, and always one that may.

The newest key of a list speaks only if its certificate was issued by the authority on record and is as the profile
demands; else the next one does, and `problem` says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log
from lakthan_ocsp.directory import check_responder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from lakthan.keys.key_ring import KeyRing
    from lakthan.keys.ring_metrics import KeyLife
    from lakthan.store.records import AuthorityRecord
    from lakthan_ocsp.directory import Responder


class Responders:
    """The key rings of all configured responders, in the order of the configuration."""

    def __init__(self, rings: Sequence[KeyRing[Responder]]) -> None:
        self.rings = rings
        self._passed_over: dict[KeyRing[Responder], str] = {}
        self._speaking: dict[KeyRing[Responder], Responder | None] = {}

    def speaking(self, authorities: Sequence[AuthorityRecord], now: datetime) -> list[Responder]:
        """One of each ring, if it has any."""
        by_name = {authority.name: authority for authority in authorities}
        chosen = [self._one(ring, by_name, now) for ring in self.rings]
        return [responder for responder in chosen if responder is not None]

    def _one(
        self, ring: KeyRing[Responder], authorities: Mapping[str, AuthorityRecord], now: datetime
    ) -> Responder | None:
        before, why = self._passed_over.pop(ring, ""), ""
        candidates = [key.made for key in ring.signing(now)]
        chosen = candidates[0] if candidates else None  # where none may, the directory says why
        for responder in candidates:
            authority = authorities.get(responder.authority)
            try:
                if authority is not None:
                    issuers = [CertificateView.from_der(encoded) for encoded in authority.certificates]
                    check_responder(responder.identity.view, authority.name, issuers, responder.profile)
            except ConfigError as error:
                why = why or str(error)
            else:
                chosen = responder
                break
        if why:
            self._passed_over[ring] = why
            if why != before:
                log.error("the newest key must not sign", target=ring.target, problem=why)
        self._speaking[ring] = chosen
        return chosen

    def problem(self, ring: KeyRing[Responder]) -> str:
        """What is wrong with the key list of a ring, or one of its keys; '' when nothing is."""
        return ring.problem or self._passed_over.get(ring, "")

    def without_keys(self) -> list[str]:
        """The authorities with a list all of whose keys are retired: that responder says nothing."""
        return [ring.name for ring in self.rings if not ring.held]

    def lives(self) -> list[KeyLife]:
        """Every key, for the metrics."""
        return [
            life
            for ring in self.rings
            for life in ring.lives(lambda key, ring=ring: key.made is self._speaking.get(ring))  # type: ignore[misc]
        ]

    def problems(self) -> list[tuple[str, str]]:
        """The authorities with key lists, and what is wrong with each."""
        return [(ring.name, self.problem(ring)) for ring in self.rings if ring.path is not None]
