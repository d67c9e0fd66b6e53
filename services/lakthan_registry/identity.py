"""Who calls: a token, or a client certificate, each bound to one credential of the store.

What a client shows is looked up by its SHA-256. A token has 256 random bits, so nobody can guess one and its hash gives
nothing away; how long a look-up takes says something about the hash of a wrong token and nothing about a right one.
Whoever shows nothing that is known gets one and the same answer, whatever it was. Whoever shows a credential that was
good once is told what is the matter with it, for he has its secret.

A token never stands in a log, a metric, an error or a record: what is known of a caller is the credential's name.

Trusted: the store's `credential` table, which says who may do what.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lakthan import der
from lakthan.store.records import CertStatus
from lakthan_registry.problems import Problem
from lakthan_registry.tls import client_certificate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from aiohttp import web

    from lakthan.certificates import CertificateView
    from lakthan.store.credentials import CredentialReader
    from lakthan.store.records import AuthorityRecord, Credential, StatusRecord
    from lakthan_registry.tls import ClientCertificates

_BEARER = re.compile(r"bearer +(?P<token>lak_[A-Za-z0-9_-]{43}) *", re.IGNORECASE)
_HOW = (
    "send Authorization: Bearer and your token, or connect with your client certificate; the registrar gives them out"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A credential that was shown, and how. `problem`: why it counts no more, None while it does."""

    credential: Credential
    through: Literal["api token", "api certificate"]
    problem: Problem | None = None

    @property
    def id(self) -> int:
        """The credential's number."""
        return self.credential.id

    @property
    def name(self) -> str:
        """The credential's name, which stands in every record of what it did."""
        return self.credential.name

    @property
    def role(self) -> str:
        """publisher, registrar or auditor."""
        return self.credential.role.label

    @property
    def authority_id(self) -> int:
        """The one authority of a publisher."""
        if self.credential.authority_id is None:
            raise TypeError(f"{self.name} is a {self.role} and has no authority")
        return self.credential.authority_id

    def check(self) -> None:
        """Raise the `Problem` of a credential that counts no more."""
        if self.problem is not None:
            raise self.problem

    def demand_scope(self, scope: str) -> None:
        """Raise `Problem` unless the credential allows this."""
        if scope not in self.credential.scopes:
            allowed = ", ".join(sorted(self.credential.scopes))
            raise Problem(
                "wrong-scope",
                f"{self.name} may {allowed}, and this needs {scope}",
                hint="ask the registrar for a credential with that scope",
            )


class Authenticator:
    """Finds the credential of each request.

    `issuers_of`: the authorities of our own store whose Name is a certificate's issuer, and `status_of` what is on
    record about one of their certificates: a client certificate that one of our CAs issued is held against its own
    status as well.
    """

    def __init__(
        self,
        credentials: CredentialReader,
        certificates: ClientCertificates,
        issuers_of: Callable[[CertificateView], Awaitable[list[AuthorityRecord]]],
        status_of: Callable[[int, bytes], Awaitable[StatusRecord | None]],
    ) -> None:
        self._credentials = credentials
        self._certificates = certificates
        self._issuers_of = issuers_of
        self._status_of = status_of

    async def identify(self, http_request: web.BaseRequest, now: datetime) -> Caller:
        """Who calls; ask `Caller.check` next. Raises `Problem` (unauthenticated), and `StoreUnavailable`."""
        certificate = client_certificate(http_request)
        by_token = await self._by_token(http_request)
        by_certificate = None if certificate is None else await self._by_certificate(certificate, now)
        if "Authorization" in http_request.headers and certificate is not None:
            return _only_one(by_token, by_certificate)
        caller = by_token or by_certificate
        if caller is None:
            raise Problem("unauthenticated", "no credential that is known came with this request", hint=_HOW)
        return caller

    async def _by_token(self, http_request: web.BaseRequest) -> Caller | None:
        given = http_request.headers.getall("Authorization", [])
        found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
        if found is None:
            return None
        credential = await self._credentials.find("token", hashlib.sha256(found["token"].encode()).digest())
        return None if credential is None else Caller(credential, "api token", _standing(credential))

    async def _by_certificate(self, view: CertificateView, now: datetime) -> Caller | None:
        credential = await self._credentials.find("certificate", hashlib.sha256(view.encoded).digest())
        if credential is None:
            return None
        problem = _standing(credential)
        if problem is None:
            try:
                self._certificates.check(view, now)
                await self._check_own_status(view)
            except Problem as raised:
                problem = raised
        return Caller(credential, "api certificate", problem)

    async def _check_own_status(self, view: CertificateView) -> None:
        serial_number = der.Reader(view.serial_number).content(der.INTEGER)
        for authority in await self._issuers_of(view):
            status = await self._status_of(authority.id, serial_number)
            revoked = status is not None and status.cert_status is CertStatus.REVOKED
            if revoked or authority.revocation_time is not None:
                raise Problem(
                    "certificate-revoked",
                    f"the certificate {view.name} is on record here as revoked, or its authority is",
                    hint="get a new client certificate and have the registrar bind it to a credential",
                )


def _standing(credential: Credential) -> Problem | None:
    if credential.state == "revoked":
        return Problem(
            "credential-revoked",
            f"the credential {credential.name} was revoked",
            hint="use the one that replaced it, or ask the registrar for another",
        )
    if credential.state == "expired":
        return Problem(
            "credential-expired",
            f"the credential {credential.name} expired at {credential.expires_at:%Y-%m-%dT%H:%M:%SZ}",
            hint="ask the registrar for a new one; make that a habit well before the end",
        )
    return None


def _only_one(by_token: Caller | None, by_certificate: Caller | None) -> Caller:
    """Two identities at once are one too many: nobody could say later who did it."""
    caller = by_token or by_certificate
    if caller is None:
        raise Problem("unauthenticated", "no credential that is known came with this request", hint=_HOW)
    if by_token is not None and by_certificate is not None and by_token.id == by_certificate.id:
        return by_token
    problem = Problem(
        "two-identities",
        "a token and a client certificate came together, and they are not one credential",
        hint="send one of the two",
    )
    return Caller(caller.credential, caller.through, problem)
