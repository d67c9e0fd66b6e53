"""Whether certificates are what an authority needs, before anything is accepted: findings with what to do about them.

An `error` is what clients or the responder would refuse, or what would put answers under a wrong name; nothing with one
is accepted. A `warning` is what some clients dislike, or what will be missed one day. Values in, values out: `now` is
given, nothing is fetched, and nobody is asked whether a certificate is revoked.

The rules for a responder's certificate are those of the OCSP service at its start, and more of them; a test holds the
two together. Sources: RFC 5280 §4, RFC 6960 §4.2.2.2, CA/Browser Forum TLS Baseline Requirements 7.1.2.8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from lakthan.algorithms import signature_algorithm_of
from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lakthan.certificates import CertificateView

Nocheck = Literal["required", "forbidden", "either"]
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_SOON = timedelta(days=90)
# RFC 6960 §4.2.2.2.1: nobody can revoke a responder with nocheck, so its life should be very short.
_LONGEST_NOCHECK = timedelta(days=366)
_OLD_HASHES = ("md2", "md4", "md5", "sha1")
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_OCSP_SIGNING = ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string


class Level(Enum):
    """How grave a finding is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. `certificate`: its subject, for people. `todo`: what to do about it."""

    level: Level
    certificate: str
    what: str
    todo: str


def _error(view: CertificateView, what: str, todo: str) -> Finding:
    return Finding(Level.ERROR, view.name, what, todo)


def _warning(view: CertificateView, what: str, todo: str) -> Finding:
    return Finding(Level.WARNING, view.name, what, todo)


def check_authority(
    views: Sequence[CertificateView], now: datetime, known: Sequence[CertificateView] = ()
) -> list[Finding]:
    """The certificates of one authority: one CA, under its current and its earlier keys. `known`: those that it has."""
    unreadable = [finding for view in views for finding in _check_readable(view)]
    if unreadable:
        return unreadable
    findings = [finding for view in views for finding in _check_ca(view, now)]
    everything = [*known, *views]
    first = everything[0]
    for view in views:
        if view.subject == first.subject:
            continue
        if any(one is not other and other.issued_by(one) for one in everything for other in (view, first)):
            findings.append(
                _error(
                    view,
                    f"a chain: it is another CA than {first.name}",
                    "give the certificates of one CA; each CA of a chain is an authority of its own",
                )
            )
        else:
            findings.append(
                _warning(view, f"its name differs from {first.name}", "go on only when it is the same CA, renamed")
            )
    return findings


def _check_readable(view: CertificateView) -> list[Finding]:
    try:
        view.certificate.extensions  # noqa: B018  # read at the first use
    except ValueError as error:
        return [_error(view, f"its extensions cannot be read ({error})", "have it issued again")]
    return []


def _check_ca(view: CertificateView, now: datetime) -> Iterator[Finding]:
    constraints = _extension(view, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        yield _error(
            view, "it is no CA's certificate: basicConstraints does not say cA", "give the certificate that issues"
        )
        return
    if not constraints.critical:
        yield _warning(
            view, "basicConstraints is not critical (RFC 5280 §4.2.1.9)", "mark it critical at the next renewal"
        )
    yield from _check_ca_usage(view)
    if _extension(view, x509.SubjectKeyIdentifier) is None:
        yield _warning(
            view, "no subjectKeyIdentifier (RFC 5280 §4.2.1.2)", "clients may not find it; add it at the next renewal"
        )
    if view.not_after < now:
        yield _warning(
            view,
            f"it ended at {view.not_after:%Y-%m-%d}",
            "right for an earlier key whose certificates are still asked for; else give the current one",
        )
    elif view.not_before > now:
        yield _warning(view, f"it begins at {view.not_before:%Y-%m-%d} only", "look at the clocks of both machines")
    elif view.not_after - now < _SOON:
        yield _warning(
            view, f"it ends at {view.not_after:%Y-%m-%d}", "have it renewed, then add the new certificate as well"
        )
    yield from _check_key(view)
    own = view.subject == view.issuer and not _is_of_another_key(view)
    if own and not view.issued_by(view):
        yield _error(view, "its own signature is wrong", "fetch the certificate again from its CA")
    yield from _check_hash(view, only_warn=own)


def _check_ca_usage(view: CertificateView) -> Iterator[Finding]:
    usage = _extension(view, x509.KeyUsage)
    if usage is None:
        yield _warning(view, "no keyUsage (RFC 5280 §4.2.1.3)", "add it at the next renewal: keyCertSign, cRLSign")
    else:
        if not usage.value.key_cert_sign:
            yield _error(
                view, "keyUsage does not allow to sign certificates (keyCertSign)", "give the certificate that issues"
            )
        if not usage.value.crl_sign:
            yield _warning(
                view,
                "keyUsage does not allow to sign CRLs (cRLSign)",
                "its CRLs will be refused; it has to push its revocations, or to be renewed",
            )
        if not usage.critical:
            yield _warning(view, "keyUsage is not critical", "mark it critical at the next renewal")
    purposes, _ = view.extended_key_usage()
    if _OCSP_SIGNING in purposes:
        yield _warning(
            view,
            "extendedKeyUsage has OCSPSigning",
            "that makes it a responder of the CA above it (RFC 6960 §4.2.2.2); take it out at the next renewal",
        )


def _is_of_another_key(view: CertificateView) -> bool:
    """Self-issued and not self-signed: a new key under the old one (RFC 5280 §3.2)."""
    authority_key, own_key = _key_identifiers(view, view)
    return authority_key is not None and own_key is not None and authority_key != own_key


def check_responder_certificate(
    view: CertificateView, issuers: Sequence[CertificateView], now: datetime, nocheck: Nocheck = "either"
) -> list[Finding]:
    """A delegated responder's certificate; `issuers`: the authority's own. `nocheck`: what the profile demands."""
    return _check_readable(view) or [
        *_check_responder_purpose(view),
        *_check_nocheck(view, nocheck),
        *_check_responder_key(view),
        *_check_issuer(view, issuers),
        *_check_responder_validity(view, now),
        *_check_hash(view),
    ]


def _check_responder_purpose(view: CertificateView) -> Iterator[Finding]:
    purposes, _ = view.extended_key_usage()
    if _OCSP_SIGNING not in purposes:
        yield _error(
            view,
            "extendedKeyUsage has no id-kp-OCSPSigning (RFC 6960 §4.2.2.2)",
            "have it issued with the profile for OCSP responders",
        )
    elif len(purposes) > 1:
        yield _error(
            view, "extendedKeyUsage has other purposes beside OCSPSigning", "have it issued with OCSPSigning alone"
        )
    if view.is_ca():
        yield _error(view, "it is a CA's certificate", "have it issued as an end entity's, with cA false")
    if _access_urls(view, AuthorityInformationAccessOID.OCSP):
        yield _error(
            view, "it has an OCSP URL of its own, where nobody could answer", "have it issued without id-ad-ocsp"
        )
    usage = _extension(view, x509.KeyUsage)
    if usage is None:
        yield _warning(view, "no keyUsage", "have it issued with keyUsage digitalSignature, critical")
        return
    if not usage.value.digital_signature:
        yield _error(view, "keyUsage does not allow digitalSignature", "have it issued with digitalSignature")
    if not usage.critical:
        yield _warning(view, "keyUsage is not critical", "mark it critical at the next renewal")
    if usage.value.key_cert_sign or usage.value.crl_sign or usage.value.key_encipherment or usage.value.key_agreement:
        yield _warning(view, "keyUsage allows more than digitalSignature", "take the rest out at the next renewal")


def _check_nocheck(view: CertificateView, rule: Nocheck) -> Iterator[Finding]:
    nocheck = _extension(view, x509.OCSPNoCheck) is not None
    lists = bool(_crl_urls(view))
    if rule == "required" and not nocheck:
        yield _error(view, "no id-pkix-ocsp-nocheck, which the profile demands", "have it issued with nocheck")
    elif rule == "forbidden" and nocheck:
        yield _error(
            view, "it has id-pkix-ocsp-nocheck, which the profile forbids", "have it issued without, with a CRL's URL"
        )
    elif not nocheck and not lists:
        yield _warning(
            view,
            "neither nocheck nor a CRL's URL: clients cannot tell whether it is revoked",
            "have it issued with nocheck, or with a cRLDistributionPoint (RFC 6960 §4.2.2.2.1)",
        )
    if nocheck and lists:
        yield _warning(view, "nocheck and a CRL's URL at once", "one of the two is enough; keep nocheck")
    if nocheck and view.not_after - view.not_before > _LONGEST_NOCHECK:
        days = (view.not_after - view.not_before).days
        yield _warning(
            view,
            f"nocheck with a life of {days} days: it cannot be revoked, so a stolen key would serve that long",
            "have it issued for some weeks, and renew it often",
        )


def _check_responder_key(view: CertificateView) -> Iterator[Finding]:
    try:
        signature_algorithm_of(view.certificate.public_key())
    except ConfigError as error:
        yield _error(view, str(error), "make another key for the responder")


def _check_responder_validity(view: CertificateView, now: datetime) -> Iterator[Finding]:
    if view.not_after < now:
        yield _error(view, f"it ended at {view.not_after:%Y-%m-%d %H:%M} UTC", "have it renewed")
    elif view.not_before > now:
        yield _error(
            view, f"it begins at {view.not_before:%Y-%m-%d %H:%M} UTC only", "look at the clocks of both machines"
        )
    elif view.not_after - now < (view.not_after - view.not_before) / 3:
        yield _warning(view, f"it ends at {view.not_after:%Y-%m-%d}, less than a third is left", "have it renewed now")


def check_sample(
    view: CertificateView, issuers: Sequence[CertificateView], crl_urls: Sequence[str] = ()
) -> list[Finding]:
    """A certificate as the CA issues them to its subscribers: whether clients will find the answers about it.

    `crl_urls`: where the authority's CRLs are to be fetched, if they are.
    """
    return _check_readable(view) or [
        *_check_issuer(view, issuers),
        *_check_where_to_ask(view, crl_urls),
        *_check_serial(view),
    ]


def _check_where_to_ask(view: CertificateView, crl_urls: Sequence[str]) -> Iterator[Finding]:
    urls = _access_urls(view, AuthorityInformationAccessOID.OCSP)
    if not urls:
        yield _warning(
            view,
            "no OCSP URL in authorityInfoAccess: clients will not ask the responder",
            "add id-ad-ocsp with the responder's http URL to the CA's profile",
        )
    for url in urls:
        if not url.startswith("http://"):
            yield _warning(view, f"the OCSP URL {url} is not http", "many clients ask by plain http only; use that")
        elif re.match(r"http://(localhost|127\.|\[::1\])", url):
            yield _warning(view, f"the OCSP URL {url} is on this machine only", "use the responder's public name")
    lists = _crl_urls(view)
    if not lists:
        yield _warning(
            view, "no cRLDistributionPoints", "clients without OCSP have nothing; add the CRL's URL to the CA's profile"
        )
    elif not any(url.startswith("http") for url in lists):
        yield _warning(view, "its CRL is published by LDAP only", "publish it by http as well")
    missing = sorted(set(crl_urls) - set(lists))
    if lists and missing:
        yield _warning(
            view,
            f"the CRL that will be fetched ({', '.join(missing)}) is not the one in the certificate",
            "look whether both are the same list",
        )


def _check_serial(view: CertificateView) -> Iterator[Finding]:
    serial_number = view.certificate.serial_number
    if serial_number <= 0 or serial_number.bit_length() > 159:
        yield _warning(
            view,
            "its serial number is not positive, or longer than 20 octets (RFC 5280 §4.1.2.2)",
            "some clients will not ask for it; look at the CA's profile",
        )
    elif serial_number.bit_length() < 33:
        yield _warning(
            view,
            "its serial number looks counted, not drawn",
            "64 random bits keep strangers from asking for what they were not given (TLS BR 7.1)",
        )


def _check_issuer(view: CertificateView, issuers: Sequence[CertificateView]) -> Iterator[Finding]:
    issuer = next((each for each in issuers if view.issued_by(each)), None)
    if issuer is None:
        yield _error(
            view,
            f"this authority did not sign it; its issuer is {view.issuer_name}",
            "give a certificate that the authority issued, or the authority's other certificates as well",
        )
        return
    authority_key, issuer_key = _key_identifiers(view, issuer)
    if authority_key is None:
        yield _warning(view, "no authorityKeyIdentifier (RFC 5280 §4.2.1.1)", "add it to the CA's profile")
    elif issuer_key is not None and authority_key != issuer_key:
        yield _error(
            view,
            "authorityKeyIdentifier names another key than its issuer's",
            "clients will not find the issuer; have it issued again",
        )
    if view.not_after > issuer.not_after:
        yield _warning(view, "it ends later than its issuer", "have it renewed with the issuer")


def _check_key(view: CertificateView) -> Iterator[Finding]:
    key = view.certificate.public_key()
    if isinstance(key, dsa.DSAPublicKey):
        yield _error(view, "a DSA key", "clients no longer know these; the CA needs another key")
    elif isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            yield _error(view, f"an RSA key of {key.key_size} bits", "clients want 2048 at least; the CA needs another")
        if key.public_numbers().e < 65537:
            yield _warning(view, f"an RSA key with the exponent {key.public_numbers().e}", "use 65537 for the next key")
    elif isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, _CURVES):
        yield _warning(view, f"a key on {key.curve.name}", "many clients know P-256, P-384 and P-521 only")


def _check_hash(view: CertificateView, *, only_warn: bool = False) -> Iterator[Finding]:
    """`only_warn`: nobody relies on the signature of a trust anchor under itself."""
    try:
        algorithm = view.certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        oid = view.certificate.signature_algorithm_oid.dotted_string
        yield _warning(view, f"an unknown signature algorithm, {oid}", "look whether your clients know it")
        return
    if algorithm is not None and algorithm.name in _OLD_HASHES:
        level = _warning if only_warn else _error
        yield level(view, f"signed with {algorithm.name}", "have it issued again with SHA-256 or better")


def _extension(view: CertificateView, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
    try:
        return view.certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _key_identifiers(view: CertificateView, issuer: CertificateView) -> tuple[bytes | None, bytes | None]:
    authority, own = _extension(view, x509.AuthorityKeyIdentifier), _extension(issuer, x509.SubjectKeyIdentifier)
    return (
        None if authority is None else authority.value.key_identifier,
        None if own is None else own.value.digest,
    )


def _access_urls(view: CertificateView, method: x509.ObjectIdentifier) -> list[str]:
    access = _extension(view, x509.AuthorityInformationAccess)
    return [
        each.access_location.value
        for each in (access.value if access is not None else ())
        if each.access_method == method and isinstance(each.access_location, x509.UniformResourceIdentifier)
    ]


def _crl_urls(view: CertificateView) -> list[str]:
    points = _extension(view, x509.CRLDistributionPoints)
    return [
        name.value
        for point in (points.value if points is not None else ())
        for name in point.full_name or ()
        if isinstance(name, x509.UniformResourceIdentifier)
    ]
