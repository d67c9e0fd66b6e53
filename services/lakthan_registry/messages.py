"""The bodies of the API: what comes in and what goes out, as types. The OpenAPI document is made of them.

Times are RFC 3339 with an offset; serial numbers are hexadecimal as `openssl x509 -serial` shows them; certificates are
PEM, or DER in base64. Unknown fields are refused: a misspelt `revocation_reasons` must not revoke without a reason.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# `$` alone would let a line break pass at the end.
SerialNumber = Annotated[
    str, Meta(pattern=r"^[0-9A-Fa-f]{1,255}$(?!\n)", description="Hexadecimal.", examples=["1F3A"])
]
Instant = Annotated[datetime, Meta(tz=True)]
SHA256 = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9A-Fa-f]{64}$", description="Hexadecimal.")]
# No control characters, none that turn lines or the direction of the text (a name stands in logs and tables), and no
# blanks around it.
_NEVER = r"\x7f-\x9f\u2028-\u202e\u2066-\u2069"
_TEXT_PATTERN = rf"^[^\x00-\x20{_NEVER}]([^\x00-\x1f{_NEVER}]*[^\x00-\x20{_NEVER}])?$(?!\n)"
Text = Annotated[str, Meta(min_length=1, max_length=200, pattern=_TEXT_PATTERN)]
PEM = Annotated[str, Meta(min_length=1, max_length=100_000, description="PEM, or DER in base64.")]
Kind = Literal["issue", "revoke", "hold", "unhold"]
Reason = Literal[
    "unspecified",
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
    "aACompromise",
]
Role = Literal["publisher", "registrar", "auditor"]
Scope = Literal["issue", "revoke", "hold", "crl", "read"]


class In(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What comes in."""


class Out(msgspec.Struct, frozen=True):
    """What goes out."""


class ChangeDetails(In, frozen=True):
    """What can be said of a change beside the certificate. All of it may be left out.

    `certificate`: from it come the serial number, `not_after` and `certificate_sha256`, and its signature must be the
    authority's. `revocation_time`: now when left out, never in the future. `not_after`, `certificate_sha256`: where the
    certificate itself is not sent. `authority`: the name of the credential's authority; another one is refused.
    """

    certificate: PEM | None = None
    authority: Text | None = None
    revocation_time: Instant | None = None
    revocation_reason: Reason | None = None
    invalidity_date: Instant | None = None
    not_after: Instant | None = None
    certificate_sha256: SHA256 | None = None


class ChangeItem(ChangeDetails, frozen=True, kw_only=True):
    """One change of one certificate, which `serial_number` or `certificate` names."""

    change: Kind
    serial_number: SerialNumber | None = None


class ChangeBatch(In, frozen=True):
    """Changes that are made all or none; each certificate once."""

    changes: Annotated[list[ChangeItem], Meta(min_length=1)]


class Changed(Out, frozen=True, omit_defaults=True):
    """The changes are on disk. At `version` every responder shows all of them; `versions`: of each, in their order.

    `served` only with `?wait=served`: every responder has said so (`acknowledged`), or the time has passed after which
    one that did not say so answers nothing from memory (`expired trust`). Either way no stale answer is given any more.
    """

    version: int
    versions: list[int]
    served: Literal["acknowledged", "expired trust"] | None = None


class Status(Out, frozen=True):
    """The status of one certificate now."""

    authority: str
    serial_number: str
    cert_status: Literal["good", "revoked", "held"]
    version: int
    revocation_time: datetime | None
    revocation_reason: str | None
    invalidity_date: datetime | None
    not_after: datetime | None
    certificate_sha256: str | None


class Event(Out, frozen=True):
    """One change on record: what, by whom, through what, when."""

    version: int
    change: Kind
    actor: str
    through: str
    recorded_at: datetime
    revocation_time: datetime | None
    revocation_reason: str | None
    invalidity_date: datetime | None
    not_after: datetime | None
    certificate_sha256: str | None
    previous_version: int | None


class History(Out, frozen=True):
    """Every change of one certificate, oldest first."""

    authority: str
    serial_number: str
    events: list[Event]


class CRLImported(Out, frozen=True, omit_defaults=True):
    """What a CRL changed. `unchanged`: on record already; `vanished`: entries that it lacks, which stay revoked, for
    a revocation is final; `reason_changed`: final revocations to which it gives another reason, which keep the old one.
    At `version` every responder shows all of it; null when nothing changed.
    """

    authority: str
    outcome: Literal["imported", "nothing new"]
    crl_number: str | None
    delta: bool
    entries: int
    revoked: int
    held: int
    released: int
    reason_changed: int
    unchanged: int
    vanished: int
    version: int | None
    served: Literal["acknowledged", "expired trust"] | None = None


class WhoAmI(Out, frozen=True):
    """The credential that the request came with."""

    name: str
    role: Role
    authority: str | None
    scopes: list[str]
    expires_at: datetime


class NewAuthority(In, frozen=True):
    """An authority, or more certificates of one that is there: its own, for its current and earlier keys."""

    name: Text
    certificates: Annotated[list[PEM], Meta(min_length=1, max_length=50)]


class AuthorityAdded(Out, frozen=True):
    """An authority is on record. `warnings`: what its certificates lack."""

    name: str
    warnings: list[str]


class AuthoritySummary(Out, frozen=True):
    """An authority on record."""

    name: str
    certificates: int
    revoked: bool


class Authorities(Out, frozen=True):
    """Every authority that the credential may see."""

    authorities: list[AuthoritySummary]


class Policy(In, frozen=True):
    """How an authority is fed. `crl_urls`: where its CRLs are fetched, one for each scope; `declared_delay_seconds`:
    within which it says that its CRLs and answers agree; `crl_drop_limit_percent`: a CRL that lacks more of the entries
    of the one before needs force.
    """

    crl_urls: Annotated[
        list[Annotated[str, Meta(pattern=r"^https?://[!-~]+$(?!\n)", max_length=2000)]], Meta(max_length=100)
    ] = []
    declared_delay_seconds: Annotated[int, Meta(ge=1, le=31_536_000)] = 3600
    crl_drop_limit_percent: Annotated[int, Meta(ge=0, le=100)] = 10


class NewCredential(In, frozen=True):
    """A credential; a publisher's has one `authority` and `scopes`. Without a `certificate` a token is made."""

    name: Text
    role: Role
    authority: Text | None = None
    scopes: list[Scope] = []
    days: Annotated[int, Meta(ge=1, le=1100)] = 365
    certificate: PEM | None = None


class Credential(Out, frozen=True):
    """A credential on record; its secret is not."""

    name: str
    role: Role
    authority: str | None
    scopes: list[str]
    kind: Literal["token", "certificate"]
    expires_at: datetime
    revoked_at: datetime | None
    created_by: str
    created_at: datetime


class CredentialMade(Out, frozen=True):
    """`token`: shown this once and kept nowhere; null for a client certificate."""

    credential: Credential
    token: str | None


class Credentials(Out, frozen=True):
    """Every credential."""

    credentials: list[Credential]


class AuditRecord(Out, frozen=True):
    """One link of an audit chain. `detail` is JSON."""

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
    changes_sha256: str | None
    previous_sha256: str
    sha256: str


class AuditPage(Out, frozen=True):
    """Records in the order of their numbers; `next_after` for the next page, null after the last."""

    records: list[AuditRecord]
    next_after: int | None


class AuditHead(Out, frozen=True):
    """The last record of a chain. Whoever notes it elsewhere can prove later that nothing before it was changed."""

    chain: int
    number: int
    sha256: str


class AuditHeads(Out, frozen=True):
    """The last record of every chain; chain 0 is that of no single authority."""

    heads: list[AuditHead]


class EJBCAStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What EJBCA's Cert Safe Publisher sends (EJBCA, CertSafePublisher). Fields that a later EJBCA adds are ignored."""

    status: Literal["active", "revoked", "hold", "expired"]
    pem: PEM
    revocation_reason: str | None = None
    revocation_date: str | None = None


class EJBCAReply(Out, frozen=True):
    """What became of it: a change that was made, or `unchanged`."""

    result: Literal["issued", "revoked", "held", "released", "unchanged"]
    version: int | None
