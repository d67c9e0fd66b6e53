"""The values of the store: what its rows mean, in the RFCs' words.

Serial numbers are `bytes` everywhere: the content octets of the minimal DER INTEGER. Instants are aware UTC datetimes
with whole seconds, except `gen_time` and `recorded_at`, which have microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from typing import NamedTuple


class CRLReason(IntEnum):
    """Why a certificate is revoked (RFC 5280 §5.3.1). 7 is not used; `removeFromCRL` never stands in a status."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    CERTIFICATE_HOLD = 6
    REMOVE_FROM_CRL = 8
    PRIVILEGE_WITHDRAWN = 9
    AA_COMPROMISE = 10

    @property
    def label(self) -> str:
        """The RFC's spelling, `keyCompromise`."""
        return _CRL_REASON_LABELS[self]

    @classmethod
    def from_label(cls, label: str) -> CRLReason:
        """The reason spelled so. Raises `ValueError` that lists the spellings."""
        for reason, spelling in _CRL_REASON_LABELS.items():
            if spelling == label:
                return reason
        raise ValueError(f"{label!r} is no CRLReason; choose one of {', '.join(_CRL_REASON_LABELS.values())}")


_CRL_REASON_LABELS = {
    CRLReason.UNSPECIFIED: "unspecified",
    CRLReason.KEY_COMPROMISE: "keyCompromise",
    CRLReason.CA_COMPROMISE: "cACompromise",
    CRLReason.AFFILIATION_CHANGED: "affiliationChanged",
    CRLReason.SUPERSEDED: "superseded",
    CRLReason.CESSATION_OF_OPERATION: "cessationOfOperation",
    CRLReason.CERTIFICATE_HOLD: "certificateHold",
    CRLReason.REMOVE_FROM_CRL: "removeFromCRL",
    CRLReason.PRIVILEGE_WITHDRAWN: "privilegeWithdrawn",
    CRLReason.AA_COMPROMISE: "aACompromise",
}


class CertStatus(Enum):
    """What is on record about a certificate. One without a record is unknown (RFC 6960 §4.2.1)."""

    GOOD = "good"
    REVOKED = "revoked"

    @property
    def label(self) -> str:
        """The RFC's spelling."""
        return self.value


class Change(Enum):
    """What can happen to a certificate's status."""

    ISSUE = "issue"
    REVOKE = "revoke"
    HOLD = "hold"
    UNHOLD = "unhold"

    @property
    def label(self) -> str:
        """The word in logs and in the audit trail."""
        return self.value


class StatusRecord(NamedTuple):
    """The status of one certificate now. Of two records about it, the one with the greater `version` is newer."""

    authority_id: int
    serial_number: bytes
    cert_status: CertStatus
    revocation_time: datetime | None
    revocation_reason: CRLReason | None
    invalidity_date: datetime | None
    not_after: datetime | None
    version: int
    certificate_sha256: bytes | None = None

    @property
    def held(self) -> bool:
        """True for a suspension, which can be lifted; any other revocation is final."""
        return self.revocation_reason is CRLReason.CERTIFICATE_HOLD


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A change to be recorded.

    `revocation_time`: for revoke and hold, now when left out, never in the future. `revocation_reason`: for revoke.
    `not_after`: the end of the certificate, with issue, or with the revocation of one that was never announced;
    `certificate_sha256` likewise: its hash, which answers can carry to prove that it was issued.
    """

    authority_id: int
    serial_number: bytes
    change: Change
    revocation_time: datetime | None = None
    revocation_reason: CRLReason | None = None
    invalidity_date: datetime | None = None
    not_after: datetime | None = None
    certificate_sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A change on record: what was asked, by whom, and when it was recorded.

    `previous_version`: the change of the same certificate before it; None for its first, and for what was recorded
    before the audit chain began. `batch`: of the statement that brought it, as in its audit record, from which
    `through` is. `crl_scope`: where it came from, when that was a CRL.
    """

    version: int
    request: ChangeRequest
    actor: str
    recorded_at: datetime
    previous_version: int | None = None
    batch: int = 0
    crl_scope: int | None = None
    through: str | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a repeated call the same call.

    `key`: 1 to 255 octets, the caller's choice, for each credential its own. `request_sha256`: of all that is asked.
    """

    credential_id: int
    key: str
    request_sha256: bytes


@dataclass(frozen=True, slots=True)
class CRLSource:
    """The CRL that an authority's statuses come from. `crl_number`: the content of its INTEGER (RFC 5280 §5.2.3)."""

    url: str | None
    crl_number: bytes | None
    this_update: datetime
    next_update: datetime


@dataclass(frozen=True, slots=True)
class AuthorityRecord:
    """An authority whose certificates are answered for.

    A CertID of one of its certificates hashes one of `names` (DER of the issuer Name) and one of `public_keys`
    (content of the subjectPublicKey BIT STRING without the unused-bits octet), RFC 6960 §4.1.1. `certificates`: its
    own, DER. With a `revocation_time` the CA itself is revoked, and all its certificates with it (RFC 6960 §2.7).
    """

    id: int
    name: str
    names: tuple[bytes, ...]
    public_keys: tuple[bytes, ...]
    certificates: tuple[bytes, ...]
    revocation_time: datetime | None = None
    revocation_reason: CRLReason | None = None
    crl: CRLSource | None = None


@dataclass(frozen=True, slots=True)
class AuthorityPolicy:
    """What an authority has declared, and what its CRLs may do.

    `crl_urls`: where it publishes them. `declared_delay`: how long OCSP and CRL may differ after a change of status
    (ETSI EN 319 411-1 CSS-6.3.10-09). `crl_drop_limit_percent`: a CRL that lost more of its entries needs a person.
    """

    crl_urls: tuple[str, ...] = ()
    declared_delay: timedelta = timedelta(hours=1)
    crl_drop_limit_percent: int = 10


class CredentialRole(Enum):
    """What a caller of the registry is."""

    PUBLISHER = "publisher"
    REGISTRAR = "registrar"
    AUDITOR = "auditor"

    @property
    def label(self) -> str:
        """The word in commands and in the audit trail."""
        return self.value


@dataclass(frozen=True, slots=True)
class Credential:
    """How a caller of the registry is known: a token or a client certificate (`kind`), of which only a hash is kept.

    `authority_id`, `scopes` (of issue, revoke, hold, crl, read): a publisher's, and empty for the others. `state`:
    valid, expired or revoked, by the database's clock when it was read.
    """

    id: int
    name: str
    role: CredentialRole
    authority_id: int | None
    scopes: frozenset[str]
    kind: str
    expires_at: datetime
    revoked_at: datetime | None
    created_by: str
    created_at: datetime
    state: str


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record of an audit chain: who did what, through what, by which login.

    `chain`: the authority's id, 0 for what is done for no single one. `detail`: a JSON object. `batch`, `change_count`
    and `changes_sha256` seal status changes, where the record is about some. `previous_sha256`: of the record before.
    """

    chain: int
    number: int
    at: datetime
    event: str
    actor: str
    through: str
    login: str
    detail: str
    batch: int | None
    change_count: int | None
    changes_sha256: bytes | None
    previous_sha256: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Where a chain ends. Noted elsewhere, it proves later that nothing was taken off the end."""

    chain: int
    number: int
    sha256: bytes


class TokenRecord(NamedTuple):
    """What is kept of one timestamp token. `clock_bound`: how far the clock could be off; None when it cannot tell."""

    serial_number: bytes
    gen_time: datetime
    policy: str
    hash_algorithm: str
    hashed_message: bytes
    tsu: str
    clock_state: str
    clock_bound: timedelta | None
    token_sha256: bytes
