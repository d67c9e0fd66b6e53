"""What is said of a certificate when nobody has asked yet: who speaks for the authority now, and the octets to sign.

The CertID is made as nearly all clients make it: the algorithm with NULL parameters. Where an authority has several
names or keys, nobody knows under which a certificate will be asked for; the answer then has a SingleResponse for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan.store.records import CertStatus
from lakthan_ocsp.directory import check_responder
from lakthan_ocsp.profiles import NonIssued
from lakthan_ocsp.responder import Issuer
from lakthan_ocsp.statuses import AuthorityStatements

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lakthan.algorithms import HashAlgorithm
    from lakthan.store.records import AuthorityRecord, StatusRecord
    from lakthan_ocsp.directory import Responder
    from lakthan_ocsp.governor import Span
    from lakthan_ocsp.responder import Draft

_MOST_ISSUERS = 8


def issuers_of(authority: AuthorityRecord) -> list[Issuer]:
    """Every name with every key: what a CertID's hashes can stand for."""
    return [Issuer(authority, name, key) for name in authority.names for key in authority.public_keys]


def before_serial(issuer: Issuer, cert_id_hash: HashAlgorithm) -> bytes:
    """The content of a CertID up to its serial number (RFC 6960 §4.1.1)."""
    return (
        cert_id_hash.algorithm_identifier_with_null
        + der.octet_string(cert_id_hash.digest(issuer.name))
        + der.octet_string(cert_id_hash.digest(issuer.public_key))
    )


@dataclass(frozen=True, slots=True)
class Statement:
    """What is to be signed about one certificate."""

    cert_status: CertStatus
    span: Span
    draft: Draft


class Voice:
    """A responder that may speak for `authority`. Raises `ConfigError` when it may not."""

    def __init__(self, authority: AuthorityRecord, responder: Responder, hashes: Sequence[HashAlgorithm]) -> None:
        views = [CertificateView.from_der(encoded) for encoded in authority.certificates]
        check_responder(responder.identity.view, authority.name, views, responder.profile)
        issuers = issuers_of(authority)
        if not 0 < len(issuers) <= _MOST_ISSUERS:
            raise ConfigError(
                f"authority {authority.name!r} has {len(authority.names)} names and {len(authority.public_keys)} keys; "
                f"answers can be signed ahead for 1 to {_MOST_ISSUERS} pairs of them"
            )
        self.authority = authority
        self.responder = responder
        self.hashes = frozenset(hashes)
        self.all_revoked = authority.revocation_time is not None
        self._statements = AuthorityStatements(
            authority, responder.profile, non_issued=responder.non_issued, cert_hash=responder.cert_hash
        )
        self._extended_revoke = responder.non_issued is NonIssued.REVOKED
        # A CertID up to its serial number, for each issuer.
        self._before_serial = {
            algorithm: [before_serial(issuer, algorithm) for issuer in issuers] for algorithm in hashes
        }

    def statement(self, record: StatusRecord, cert_id_hash: HashAlgorithm, now: datetime) -> Statement | None:
        """What is said `now` of a certificate on record; None when nothing is, because it has expired.

        Raises `PolicyViolation` and `SourceExpired`.
        """
        said = self._statements.of(record, now)
        if said is None:
            return None
        span = self.responder.governor.span(now, [record], self.authority.crl)
        serial = der.encode(der.INTEGER, record.serial_number)
        draft = self.responder.template.draft(
            [
                (der.sequence(before, serial), said.cert_status, said.single_extensions)
                for before in self._before_serial[cert_id_hash]
            ],
            span,
            extended_revoke=self._extended_revoke,
        )
        return Statement(CertStatus(said.outcome), span, draft)
