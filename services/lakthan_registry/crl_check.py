"""Is a CRL believed? The rules of an importer, pure: values in, a `CRLRefused` or nothing out (RFC 5280 §5 and §6.3.3).

The order is: whose is it (`find_issuer`: Name, key identifier, signature, cRLSign), what it is about (`check_form`), is
it in force (`check_freshness`), and does it go on from the one on record (`check_succession`, `check_drop`)? The word
of a refusal, its `verdict`, is stable: metrics, logs and the API show it.

It refuses to know the store, the clock and how the CRL came here.

Trusted: the certificates of the authorities on record. Whether they have expired is not asked: the operator who added
them decided whose word counts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa, utils

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.errors import LakthanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.store.bulk import CRLPlan, CRLScope
    from lakthan.store.records import AuthorityRecord
    from lakthan_registry.crl_syntax import CRL


# Of a CA with a handful of entries, any one is more than a few per cent.
_ALWAYS_MAY_GO = 10


class Verdict(Enum):
    """Why a CRL was refused. The values are stable words."""

    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    UNKNOWN_ISSUER = "unknown_issuer"
    SIGNATURE = "signature"
    CRL_SIGN = "crl_sign"
    CRITICAL_EXTENSION = "critical_extension"
    SCOPE = "scope"
    ATTRIBUTE_CERTIFICATES = "attribute_certificates"
    NO_NEXT_UPDATE = "no_next_update"
    FUTURE = "future"
    EXPIRED = "expired"
    OLDER_NUMBER = "older_number"
    OLDER_THIS_UPDATE = "older_this_update"
    NUMBER_REUSED = "number_reused"
    DELTA_WITHOUT_BASE = "delta_without_base"
    DELTA_BASE_AHEAD = "delta_base_ahead"
    DROPPED_ENTRIES = "dropped_entries"
    UNKNOWN_AUTHORITY = "unknown_authority"
    NOT_ALLOWED = "not_allowed"
    CONTRADICTING_ENTRIES = "contradicting_entries"

    @property
    def label(self) -> str:
        """The word in metrics, logs and answers."""
        return self.value


class CRLRefused(LakthanError):
    """A CRL is not imported; nothing was changed. `verdict`: the rule that it broke."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Names:
    """Finds authorities by Name. Names are equal as encoded, or else as RFC 5280 §7.1 compares them: letters of either
    case, other string types and other runs of blanks are the same.
    """

    authorities: Sequence[AuthorityRecord]

    def find(self, name: bytes) -> list[AuthorityRecord]:
        """The authorities that have this Name (DER)."""
        exact = [each for each in self.authorities if name in each.names]
        if exact:
            return exact
        wanted = _prepared(name)
        return [each for each in self.authorities if any(_prepared(mine) == wanted for mine in each.names)]


def find_issuer(crl: CRL, names: Names) -> AuthorityRecord:
    """The authority that signed the CRL, with any of the keys of its certificates: the current or an earlier one.

    Raises `CRLRefused`.
    """
    candidates = names.find(crl.issuer)
    if not candidates:
        raise CRLRefused(
            Verdict.UNKNOWN_ISSUER,
            f"no authority on record has the CRL's issuer as its name ({_for_people(crl.issuer)}); add the CA first",
        )
    start, end = crl.tbs_span
    forbidden = False
    # Let go of the view at once, whatever happens: a mapped file cannot be closed while there is one.
    with memoryview(crl.data) as whole, whole[start:end] as tbs:
        verify = _Verification(crl, tbs)
        for authority in candidates:
            for certificate in _likely_first(crl, authority.certificates):
                if verify.made_with(certificate.certificate.public_key()):
                    if _may_sign_crls(certificate):
                        return authority
                    forbidden = True
    if forbidden:
        raise CRLRefused(
            Verdict.CRL_SIGN, "the certificate that signed the CRL has a keyUsage without cRLSign (RFC 5280 §4.2.1.3)"
        )
    raise CRLRefused(
        Verdict.SIGNATURE,
        f"the signature does not verify with any key of {', '.join(each.name for each in candidates)}; the CRL was "
        "altered or signed with a key whose certificate is not on record",
    )


def check_form(crl: CRL) -> None:
    """What the CRL is about must be something that can be imported. Raises `CRLRefused`."""
    if crl.unknown_critical:
        raise CRLRefused(
            Verdict.CRITICAL_EXTENSION,
            f"the CRL has the critical extension {crl.unknown_critical[0]}, which is not known here (RFC 5280 §5.2)",
        )
    point = crl.issuing_distribution_point
    if point is not None:
        if point.only_contains_attribute_certs:
            raise CRLRefused(
                Verdict.ATTRIBUTE_CERTIFICATES, "the CRL is about attribute certificates, and none are answered for"
            )
        if point.only_contains_user_certs and point.only_contains_ca_certs:
            raise CRLRefused(
                Verdict.SCOPE, "the issuingDistributionPoint contradicts itself: only user and only CA certificates"
            )
        if point.encoded == b"\x30\x00":
            raise CRLRefused(Verdict.SCOPE, "the issuingDistributionPoint is empty (RFC 5280 §5.2.5)")
    if crl.base_crl_number is not None:
        if crl.crl_number is None:
            raise CRLRefused(Verdict.MALFORMED, "a delta CRL without a CRLNumber (RFC 5280 §5.2.3)")
        if crl.base_crl_number > crl.crl_number:
            raise CRLRefused(Verdict.MALFORMED, "a delta CRL whose BaseCRLNumber is above its own CRLNumber")


def check_freshness(crl: CRL, now: datetime) -> None:
    """The CRL must be in force at `now`. Raises `CRLRefused`."""
    if crl.next_update is None:
        raise CRLRefused(
            Verdict.NO_NEXT_UPDATE, "the CRL has no nextUpdate, so nobody can tell when it is stale (RFC 5280 §5.1.2.5)"
        )
    if crl.next_update <= crl.this_update:
        raise CRLRefused(Verdict.MALFORMED, "the CRL ends before it begins: nextUpdate is not after thisUpdate")
    if crl.this_update > now:
        raise CRLRefused(
            Verdict.FUTURE,
            f"the CRL's thisUpdate {crl.this_update} lies in the future; compare the clocks of the CA and this machine",
        )
    if crl.next_update <= now:
        raise CRLRefused(Verdict.EXPIRED, f"the CRL expired at {crl.next_update}; get the newest one")


def check_succession(crl: CRL, current: CRLScope | None) -> None:
    """The CRL must go on from the newest one of its scope. Raises `CRLRefused`.

    A complete CRL may have the number of the delta CRL that was issued with it (RFC 5280 §5.2.3).
    """
    if current is None:
        if crl.delta:
            raise CRLRefused(
                Verdict.DELTA_WITHOUT_BASE,
                "a delta CRL needs the complete CRL of the same scope first; import that one",
            )
        return
    if current.crl_number is not None:
        if crl.crl_number is None:
            raise CRLRefused(
                Verdict.OLDER_NUMBER, f"the CRL has no CRLNumber; the one on record has {current.crl_number}"
            )
        if crl.crl_number < current.crl_number:
            raise CRLRefused(
                Verdict.OLDER_NUMBER, f"the CRLNumber {crl.crl_number} is below the {current.crl_number} on record"
            )
        together = not crl.delta and current.complete_number != current.crl_number
        if crl.crl_number == current.crl_number and not together:
            raise CRLRefused(
                Verdict.NUMBER_REUSED,
                f"the CRLNumber {crl.crl_number} is that of the CRL on record, which is another one; a CA gives each "
                "number once",
            )
    if crl.this_update < current.this_update:
        raise CRLRefused(
            Verdict.OLDER_THIS_UPDATE,
            f"the CRL's thisUpdate {crl.this_update} is before the {current.this_update} of the one on record",
        )
    if crl.base_crl_number is not None:
        if current.complete_number is None or current.crl_number is None:
            raise CRLRefused(
                Verdict.DELTA_WITHOUT_BASE, "the complete CRL on record has no CRLNumber that a delta could start from"
            )
        if crl.base_crl_number > current.crl_number:
            raise CRLRefused(
                Verdict.DELTA_BASE_AHEAD,
                f"the delta CRL starts from number {crl.base_crl_number}, and {current.crl_number} is on record; "
                "import the complete CRL first",
            )


def check_drop(plan: CRLPlan, current: CRLScope | None, limit_percent: int) -> None:
    """A complete CRL must not have lost more than `limit_percent` of the entries of the one before, and more than ten;
    entries of certificates that are known to have expired may go. Raises `CRLRefused`.
    """
    if current is None:
        return
    dropped = min(current.complete_entries - plan.entries, plan.vanished + plan.released)
    if dropped > _ALWAYS_MAY_GO and dropped * 100 > current.complete_entries * limit_percent:
        raise CRLRefused(
            Verdict.DROPPED_ENTRIES,
            f"the CRL has {plan.entries} entries and the one before had {current.complete_entries}: {dropped} have "
            f"gone, more than {limit_percent} %. If the CA says that this is right, import it with --force",
        )


class _Verification:
    """The signature of one CRL against any number of keys; the CRL is hashed once."""

    def __init__(self, crl: CRL, tbs: memoryview) -> None:
        self._signature = crl.signature
        self._tbs = tbs
        try:
            # An empty CRL with the same AlgorithmIdentifier: pyca reads the parameters of a signature for us.
            empty = x509.load_der_x509_crl(_empty_crl(crl.signature_algorithm))
            self._hash = empty.signature_hash_algorithm
            self._parameters = empty.signature_algorithm_parameters
        except (ValueError, UnsupportedAlgorithm) as error:
            raise CRLRefused(Verdict.ALGORITHM, f"the CRL's signature algorithm is not known here: {error}") from error
        if self._hash is not None and self._hash.name in {"md5", "sha1"}:
            raise CRLRefused(
                Verdict.ALGORITHM, f"the CRL is signed over {self._hash.name.upper()}, which can be forged; use SHA-256"
            )
        if self._hash is not None and self._parameters is None:
            raise CRLRefused(Verdict.ALGORITHM, "the CRL's signature algorithm is not known here; use ECDSA or RSA")
        self._digest = None if self._hash is None else hashlib.new(self._hash.name, self._tbs).digest()

    def made_with(self, key: PublicKeyTypes) -> bool:
        """True when the private half of `key` made the signature."""
        if self._signature is None:
            return False
        try:
            self._verify(key, self._signature)
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            return False
        return True

    def _verify(self, key: PublicKeyTypes, signature: bytes) -> None:
        parameters = self._parameters
        if self._hash is None:
            if parameters is None and isinstance(
                key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey | mldsa.MLDSA65PublicKey
            ):
                key.verify(signature, self._tbs)
                return
        elif self._digest is not None:
            prehashed = utils.Prehashed(self._hash)
            if isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
                key.verify(signature, self._digest, parameters, prehashed)
                return
            if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
                key.verify(signature, self._digest, ec.ECDSA(prehashed))
                return
        raise InvalidSignature("a key of another kind")


def _empty_crl(algorithm: bytes) -> bytes:
    this_update = der.encode(0x17, b"000101000000Z")
    tbs = der.sequence(der.integer(1), algorithm, der.sequence(), this_update)
    return der.sequence(tbs, algorithm, der.bit_string(b""))


def _likely_first(crl: CRL, certificates: Iterable[bytes]) -> list[CertificateView]:
    views = [CertificateView.from_der(each) for each in certificates]
    return sorted(views, key=lambda view: _key_identifier(view) != crl.authority_key_identifier)


def _key_identifier(view: CertificateView) -> bytes | None:
    try:
        return view.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, ValueError):
        return None


def _may_sign_crls(view: CertificateView) -> bool:
    try:
        return view.certificate.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _prepared(name: bytes) -> str | None:
    try:
        prepared: str = asn1_x509.Name.load(name).hashable
    except (ValueError, TypeError):
        return None
    return prepared


def _for_people(name: bytes) -> str:
    try:
        shown: str = asn1_x509.Name.load(name).human_friendly
    except (ValueError, TypeError):
        return name.hex()
    return shown
