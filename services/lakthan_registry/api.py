"""The API as one table: what can be asked for, by whom, with what, and what comes back.

The edge makes its routes of it and the OpenAPI document its paths, so neither can tell anything but the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from lakthan_registry import messages
from lakthan_registry.messages import In

MEBIBYTE = 1024 * 1024
JSON = "application/json"
CRL_MEDIA_TYPES = ("application/pkix-crl", "application/x-pem-file", "application/octet-stream")

Wait = (
    Annotated[Literal["served"], Meta(description="`served`: answer when every responder answers by the change.")]
    | UnsetType
)
AuthorityName = (
    Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)",
            description="The authority; a publisher need not name its own.",
        ),
    ]
    | UnsetType
)


class NoQuery(In, frozen=True):
    """Nothing after the question mark."""


class WaitQuery(In, frozen=True):
    """Of changes."""

    wait: Wait = UNSET


class CRLQuery(In, frozen=True):
    """Of a CRL."""

    wait: Wait = UNSET
    force: Annotated[
        Literal["true", "false"], Meta(description="Take the CRL although it lacks many entries of the one before.")
    ] = "false"


class AuthorityQuery(In, frozen=True):
    """Of what is read."""

    authority: AuthorityName = UNSET


class AuditQuery(In, frozen=True):
    """Of the audit: a chain belongs to an authority; without a name it is the chain of no single authority."""

    authority: AuthorityName = UNSET
    after: Annotated[int, Meta(ge=0, le=2**53, description="Records with a greater number than this.")] = 0
    limit: Annotated[int, Meta(ge=1, le=1000, description="How many at most.")] = 100


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `roles`: who may ask (empty: everybody, without a credential); `scope`: what a publisher needs.

    `request`: the type of a JSON body, None for none; a CRL is the one body that is not JSON. `keyed`: takes an
    Idempotency-Key. `writes`: every refusal of a known caller is put on record.
    """

    operation: str
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    summary: str
    response: type[msgspec.Struct] | None
    roles: frozenset[str] = frozenset()
    scope: str = ""
    request: type[msgspec.Struct] | None = None
    query: type[In] = NoQuery
    largest_body: int = MEBIBYTE
    timeout_seconds: float = 30.0
    keyed: bool = False
    status: int = 200
    raw: bool = False
    tags: tuple[str, ...] = field(default=())

    @property
    def writes(self) -> bool:
        """True for whatever changes the store."""
        return self.method != "GET"


_PUBLISHER = frozenset({"publisher"})
_REGISTRAR = frozenset({"registrar"})
_AUDITOR = frozenset({"auditor"})
_OVERSEERS = _REGISTRAR | _AUDITOR
_ANYBODY = _PUBLISHER | _OVERSEERS
_CERTIFICATE = "/v1/certificates/{serial_number}"


def _single(operation: str, scope: str, summary: str) -> Route:
    return Route(
        operation,
        "POST",
        f"{_CERTIFICATE}/{operation}",
        summary,
        messages.Changed,
        _PUBLISHER,
        scope,
        messages.ChangeDetails,
        WaitQuery,
        keyed=True,
        tags=("changes",),
    )


ROUTES = (
    Route(
        "changes",
        "POST",
        "/v1/changes",
        "Issue, revoke, hold and unhold certificates, up to 10,000 at once, all or none",
        messages.Changed,
        _PUBLISHER,
        request=messages.ChangeBatch,
        query=WaitQuery,
        largest_body=40 * MEBIBYTE,
        keyed=True,
        tags=("changes",),
    ),
    _single("issue", "issue", "Announce a certificate: from now on it is good"),
    _single("revoke", "revoke", "Revoke a certificate for good"),
    _single("hold", "hold", "Suspend a good certificate"),
    _single("unhold", "hold", "Make a suspended certificate good again"),
    Route(
        "crls",
        "POST",
        "/v1/crls",
        "Import a CRL of the authority, DER or PEM",
        messages.CRLImported,
        _PUBLISHER,
        "crl",
        query=CRLQuery,
        largest_body=256 * MEBIBYTE,
        timeout_seconds=600.0,
        raw=True,
        tags=("changes",),
    ),
    Route(
        "status",
        "GET",
        _CERTIFICATE,
        "The status of a certificate now",
        messages.Status,
        _ANYBODY,
        "read",
        query=AuthorityQuery,
        tags=("certificates",),
    ),
    Route(
        "history",
        "GET",
        f"{_CERTIFICATE}/history",
        "Every change of a certificate: who, when, why, through what",
        messages.History,
        _ANYBODY,
        "read",
        query=AuthorityQuery,
        tags=("certificates",),
    ),
    Route(
        "identity",
        "GET",
        "/v1/identity",
        "Whose credential this is, and what it may do",
        messages.WhoAmI,
        _ANYBODY,
        tags=("credentials",),
    ),
    Route(
        "list_authorities",
        "GET",
        "/v1/authorities",
        "Every authority",
        messages.Authorities,
        _OVERSEERS,
        tags=("authorities",),
    ),
    Route(
        "add_authority",
        "POST",
        "/v1/authorities",
        "Add an authority, or certificates of one that is there",
        messages.AuthorityAdded,
        _REGISTRAR,
        request=messages.NewAuthority,
        tags=("authorities",),
    ),
    Route(
        "policy",
        "GET",
        "/v1/authorities/{authority}/policy",
        "How an authority is fed",
        messages.Policy,
        _OVERSEERS,
        tags=("authorities",),
    ),
    Route(
        "set_policy",
        "PUT",
        "/v1/authorities/{authority}/policy",
        "Set how an authority is fed",
        messages.Policy,
        _REGISTRAR,
        request=messages.Policy,
        tags=("authorities",),
    ),
    Route(
        "list_credentials",
        "GET",
        "/v1/credentials",
        "Every credential, without its secret",
        messages.Credentials,
        _OVERSEERS,
        tags=("credentials",),
    ),
    Route(
        "create_credential",
        "POST",
        "/v1/credentials",
        "Make a credential; a token is shown this once",
        messages.CredentialMade,
        _REGISTRAR,
        request=messages.NewCredential,
        status=201,
        tags=("credentials",),
    ),
    Route(
        "revoke_credential",
        "DELETE",
        "/v1/credentials/{name}",
        "Revoke a credential for good",
        None,
        _REGISTRAR,
        status=204,
        tags=("credentials",),
    ),
    Route(
        "audit",
        "GET",
        "/v1/audit",
        "The audit chain of an authority, page by page",
        messages.AuditPage,
        _AUDITOR,
        query=AuditQuery,
        tags=("audit",),
    ),
    Route(
        "audit_heads",
        "GET",
        "/v1/audit/head",
        "The last record of every audit chain",
        messages.AuditHeads,
        _AUDITOR,
        tags=("audit",),
    ),
    Route(
        "ejbca",
        "POST",
        "/ejbca/cert-safe",
        "What EJBCA's Cert Safe Publisher sends",
        messages.EJBCAReply,
        _PUBLISHER,
        request=messages.EJBCAStatus,
        tags=("ejbca",),
    ),
    Route(
        "ejbca_test",
        "GET",
        "/ejbca/cert-safe",
        "EJBCA's test of the connection",
        messages.WhoAmI,
        _PUBLISHER,
        tags=("ejbca",),
    ),
    Route("openapi", "GET", "/openapi.json", "This document", None),
)
