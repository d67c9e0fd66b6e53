"""Who may answer for which issuer: the authorities of the store matched with the responders of the configuration.

One responder for each authority and no fallback: a CertID that no single responder is entitled to answer is refused
as `unauthorized`, unsigned (RFC 9919 §3.2.3). Another CA's key never stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan_ocsp.responder import ResponderTemplate, check_responder, issuer_index
from lakthan_ocsp.syntax import CertID, OCSPResponseStatus, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lakthan.identity import Identity
    from lakthan.store.records import AuthorityRecord
    from lakthan_ocsp.freshness import Freshness


@dataclass(frozen=True, slots=True)
class Responder:
    """One configured responder: for which authority, as whom, and for how long its answers hold."""

    authority: str
    identity: Identity
    freshness: Freshness
    template: ResponderTemplate


@dataclass(frozen=True, slots=True)
class Entitled:
    """A responder and the id of the authority of the store that it speaks for."""

    responder: Responder
    authority_id: int


class NotEntitled(RequestError):
    """`unauthorized`, and for the operators the `cause`: one of a few fixed words."""

    def __init__(self, cause: str) -> None:
        super().__init__(OCSPResponseStatus.UNAUTHORIZED, cause)
        self.cause = cause


FOREIGN_ISSUER = "foreign issuer"
NO_RESPONDER = "no responder"
MIXED_ISSUERS = "mixed issuers"


class Directory:
    """A snapshot; a change of the authorities makes a new one.

    `problems`: for every configured authority what keeps its responder from speaking, '' when nothing does.
    """

    def __init__(self, authorities: Sequence[AuthorityRecord], responders: Iterable[Responder]) -> None:
        self.problems: dict[str, str] = {}
        self._issuers: Mapping[bytes, AuthorityRecord] = issuer_index(authorities)
        self._entitled: dict[int, Entitled] = {}
        by_name = {authority.name: authority for authority in authorities}
        for responder in responders:
            authority = by_name.get(responder.authority)
            problem = "the store has no such authority" if authority is None else ""
            if authority is not None:
                issuers = [CertificateView.from_der(encoded) for encoded in authority.certificates]
                try:
                    check_responder(responder.identity.view, authority, issuers)
                except ConfigError as error:
                    problem = str(error)
                else:
                    self._entitled[authority.id] = Entitled(responder, authority.id)
            self.problems[responder.authority] = problem

    def entitled(self, cert_ids: Sequence[CertID]) -> Entitled:
        """Who answers this request. Raises `NotEntitled` when no one responder may answer all of it."""
        authority = self._issuers.get(cert_ids[0].issuer)
        if authority is None:
            raise NotEntitled(FOREIGN_ISSUER)
        for cert_id in cert_ids[1:]:
            other = self._issuers.get(cert_id.issuer)
            if other is not authority:
                raise NotEntitled(FOREIGN_ISSUER if other is None else MIXED_ISSUERS)
        found = self._entitled.get(authority.id)
        if found is None:
            raise NotEntitled(NO_RESPONDER)
        return found
