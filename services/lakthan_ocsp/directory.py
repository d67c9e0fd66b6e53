"""Who may answer for which issuer: the authorities of the store matched with the responders of the configuration.

An authority has one or several responders, and nobody else answers for it: a CertID that no single responder is
entitled to answer is refused as `unauthorized`, unsigned (RFC 9919 §3.2.3). Another CA's key never stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan_ocsp.profiles import Nocheck
from lakthan_ocsp.responder import Issuer, issuer_index
from lakthan_ocsp.statuses import AuthorityStatements
from lakthan_ocsp.syntax import CertID, OCSPResponseStatus, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lakthan.identity import Identity
    from lakthan.store.records import AuthorityRecord
    from lakthan_ocsp.governor import Governor, MaxAge
    from lakthan_ocsp.profiles import NonIssued, Profile
    from lakthan_ocsp.requestors import Requestors
    from lakthan_ocsp.responder import ResponderTemplate
    from lakthan_ocsp.syntax import OCSPRequest, PreferredAlgorithm

_NO_AUTHORITY = "the store has no such authority"
_OCSP_SIGNING = ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string


@dataclass(frozen=True, slots=True)
class Responder:
    """One configured responder: for which authority, as whom, and by which rules."""

    authority: str
    identity: Identity
    governor: Governor
    template: ResponderTemplate
    requestors: Requestors
    non_issued: NonIssued
    dual_hash: bool = False
    cert_hash: bool = False
    final: bool = False

    @property
    def profile(self) -> Profile:
        """The profile that the authority is answered by."""
        return self.governor.profile

    def suits(self, preferred: PreferredAlgorithm) -> bool:
        """True when this responder signs as the client prefers (RFC 6960 §4.4.7.1)."""
        algorithm = der.Reader(self.identity.signer.algorithm.algorithm_identifier).enter(der.SEQUENCE)
        if algorithm.element(der.OBJECT_IDENTIFIER) != preferred.signature:
            return False
        key = der.Reader(self.identity.view.public_key_algorithm).enter(der.SEQUENCE)
        return (not preferred.key or key.element(der.OBJECT_IDENTIFIER) == preferred.key) and (
            not preferred.key_parameters or key.data[key.at : key.end] == preferred.key_parameters
        )


@dataclass(frozen=True, slots=True)
class Entitled:
    """A responder that may answer a request, with whose certificates are asked about."""

    responder: Responder
    issuer: Issuer
    statements: AuthorityStatements


@dataclass(frozen=True, slots=True, eq=False)
class PublishedResponder:
    """An authority of the configuration whose answers were signed elsewhere or ahead; `max_age` is for caches outside.
    `live`: a key is there as well, for what cannot have been signed before it was asked.
    """

    authority: str
    max_age: MaxAge
    live: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """As `Entitled`, for an authority whose answers are published. `live`: who signs at once, where somebody does."""

    responder: PublishedResponder
    issuer: Issuer
    live: Entitled | None = None


@dataclass(frozen=True, slots=True)
class _Speaker:
    """A responder that its authority's certificates have been checked against. `issued_by_key`: the key that did."""

    responder: Responder
    issued_by_key: bytes
    statements: AuthorityStatements


class NotEntitled(RequestError):
    """`unauthorized`, and for the operators the `cause`: one of a few fixed words."""

    def __init__(self, cause: str) -> None:
        super().__init__(OCSPResponseStatus.UNAUTHORIZED, cause)
        self.cause = cause


FOREIGN_ISSUER = "foreign issuer"
NO_RESPONDER = "no responder"
MIXED_ISSUERS = "mixed issuers"
NOT_ON_RECORD = "not on record"
NOT_PUBLISHED = "not published"


def check_responder(
    view: CertificateView, authority: str, issuers: Sequence[CertificateView], profile: Profile
) -> bytes:
    """A delegated responder speaks only for the CA that issued its certificate (RFC 6960 §4.2.2.2).

    Gives the key of the one of `issuers`, the certificates of the authority of that name, that issued it. Raises
    `ConfigError` when none did, or when the certificate is not for OCSP signing or not as its profile demands.
    """
    purposes, _ = view.extended_key_usage()
    extensions = view.certificate.extensions
    nocheck = any(isinstance(extension.value, x509.OCSPNoCheck) for extension in extensions)
    ocsp_urls = [
        access
        for extension in extensions
        if isinstance(extension.value, x509.AuthorityInformationAccess)
        for access in extension.value
        if access.access_method == AuthorityInformationAccessOID.OCSP
    ]
    for wrong, why in (
        (_OCSP_SIGNING not in purposes, "no id-kp-OCSPSigning in its certificate"),
        (purposes != [_OCSP_SIGNING], "its certificate has other purposes than OCSP signing"),
        (view.is_ca(), "its certificate is a CA's"),
        (bool(ocsp_urls), "its certificate has an OCSP URL of its own, and nobody could answer there"),
        (profile.nocheck is Nocheck.REQUIRED and not nocheck, f"profile {profile.name} demands ocsp-nocheck"),
        (profile.nocheck is Nocheck.FORBIDDEN and nocheck, f"profile {profile.name} forbids ocsp-nocheck"),
    ):
        if wrong:
            raise ConfigError(f"{view.name} cannot answer for {authority!r}: {why}")
    for issuer in issuers:
        if view.issued_by(issuer):
            return issuer.public_key
    raise ConfigError(f"{view.name} cannot answer for {authority!r}: that CA did not issue its certificate")


class Directory:
    """A snapshot; a change of the authorities makes a new one.

    `problems`: for every configured responder what keeps it from speaking, '' when nothing does.
    """

    def __init__(
        self,
        authorities: Sequence[AuthorityRecord],
        responders: Iterable[Responder],
        published: Iterable[PublishedResponder] = (),
    ) -> None:
        self.problems: dict[str, str] = {}
        self._issuers: Mapping[bytes, Issuer] = issuer_index(authorities)
        self._speakers: dict[int, list[_Speaker]] = {}
        self._published: dict[int, PublishedResponder] = {}
        by_name = {authority.name: authority for authority in authorities}
        for each in published:
            authority = by_name.get(each.authority)
            self.problems[f"{each.authority} (published)"] = "" if authority else _NO_AUTHORITY
            if authority:
                self._published[authority.id] = each
        for responder in responders:
            name = f"{responder.authority} ({responder.identity.signer.algorithm.label})"
            authority = by_name.get(responder.authority)
            if authority is None:
                self.problems[name] = _NO_AUTHORITY
                continue
            if authority.id in self._published and not self._published[authority.id].live:
                self.problems[name] = "its answers are published: another responder would contradict them"
                continue
            try:
                speaker = _speaker(responder, authority)
            except ConfigError as error:
                self.problems[name] = str(error)
            else:
                self._speakers.setdefault(authority.id, []).append(speaker)
                self.problems.setdefault(name, "")
        # Who answers a request that asks about one certificate and prefers nothing, which is nearly every request.
        self._usually: dict[bytes, Entitled | Published] = {}

    @property
    def speaks(self) -> bool:
        """True when somebody is answered for."""
        return bool(self._speakers or self._published)

    def entitled(self, request: OCSPRequest) -> Entitled | Published:
        """Who answers this request. Raises `NotEntitled` when no one responder may answer all of it.

        Of several responders the one is taken that the CertID's CA key issued, and among these by RFC 6960 §4.4.7.2.1:
        the first that suits the client's list, in the client's order, else the first of the configuration.
        """
        usual = not request.preferred and len(request.cert_ids) == 1
        entitled = self._usually.get(request.cert_ids[0].issuer) if usual else None
        if entitled is None:
            entitled = self._entitled(request)
            if usual:
                self._usually[request.cert_ids[0].issuer] = entitled  # as many as there are issuers
        if isinstance(entitled, Published) and entitled.live is not None and _wants_its_own(request, entitled.live):
            return entitled.live
        return entitled

    def _entitled(self, request: OCSPRequest) -> Entitled | Published:
        issuer = self._issuer(request.cert_ids)
        published = self._published.get(issuer.authority.id)
        speakers = self._speakers.get(issuer.authority.id)
        if published is not None:
            return Published(published, issuer, self._signing(request, issuer, speakers) if speakers else None)
        if not speakers:
            raise NotEntitled(NO_RESPONDER)
        return self._signing(request, issuer, speakers)

    @staticmethod
    def _signing(request: OCSPRequest, issuer: Issuer, speakers: list[_Speaker]) -> Entitled:
        speakers = [each for each in speakers if each.issued_by_key == issuer.public_key] or speakers
        chosen = next(
            (each for preferred in request.preferred for each in speakers if each.responder.suits(preferred)),
            speakers[0],
        )
        return Entitled(chosen.responder, issuer, chosen.statements)

    def _issuer(self, cert_ids: Sequence[CertID]) -> Issuer:
        first = self._issuers.get(cert_ids[0].issuer)
        if first is None:
            raise NotEntitled(FOREIGN_ISSUER)
        for cert_id in cert_ids[1:]:
            other = self._issuers.get(cert_id.issuer)
            if other is None:
                raise NotEntitled(FOREIGN_ISSUER)
            if other.authority is not first.authority:
                raise NotEntitled(MIXED_ISSUERS)
        return first


def _wants_its_own(request: OCSPRequest, live: Entitled) -> bool:
    """True for what nobody can have signed before it was asked: with a nonce, or about several certificates."""
    nonce = request.nonce is not None and live.responder.profile.nonce and not live.responder.final
    return nonce or len(request.cert_ids) != 1


def _speaker(responder: Responder, authority: AuthorityRecord) -> _Speaker:
    issuers = [CertificateView.from_der(encoded) for encoded in authority.certificates]
    key = check_responder(responder.identity.view, authority.name, issuers, responder.profile)
    statements = AuthorityStatements(
        authority, responder.profile, non_issued=responder.non_issued, cert_hash=responder.cert_hash
    )
    return _Speaker(responder, key, statements)
