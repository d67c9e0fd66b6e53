"""What the responder says, as pure values: who is asked, what gets signed, and the finished octets (RFC 6960 §4.2).

Nothing here reads a clock, a socket, a key or the database. Whatever is constant for a responder is encoded once, in
its `ResponderTemplate`; an answer is then a handful of joins around one signature. Hence the seam: `draft` gives the
octets to sign (`Draft.tbs`), `Draft.seal` takes the signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.errors import ConfigError
from lakthan_ocsp.syntax import ID_PKIX_OCSP_BASIC, ID_PKIX_OCSP_NONCE, CertID, OCSPResponseStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from lakthan.identity import Identity
    from lakthan.store.records import AuthorityRecord
    from lakthan_ocsp.governor import Span

# The algorithms under which an issuer can be looked up; clients still ask with SHA-1 (RFC 9919 §3.2.1).
CERT_ID_HASHES = (
    HashAlgorithm.SHA_1,
    HashAlgorithm.SHA_224,
    HashAlgorithm.SHA_256,
    HashAlgorithm.SHA_384,
    HashAlgorithm.SHA_512,
)

GOOD = b"\x80\x00"
UNKNOWN = b"\x82\x00"
_REASON_UNSPECIFIED = 0
# RFC 6960 §4.4.8: value NULL, not critical.
EXTENDED_REVOKE = der.sequence(der.object_identifier("1.3.6.1.5.5.7.48.1.9"), der.octet_string(b"\x05\x00"))


def refusal(status: OCSPResponseStatus) -> bytes:
    """An OCSPResponse that carries nothing but its status, unsigned (RFC 6960 §4.2.1)."""
    return der.sequence(der.encode(der.ENUMERATED, bytes((status,))))


def revoked(revocation_time: datetime, reason: int | None) -> bytes:
    """RevokedInfo as a CertStatus (RFC 6960 §4.2.1). An unspecified reason is left out, as in RFC 5280 §5.3.1."""
    if reason is None or reason == _REASON_UNSPECIFIED:
        return der.encode(0xA1, der.generalized_time(revocation_time))
    reason_der = der.encode(0xA0, der.encode(der.ENUMERATED, bytes((reason,))))
    return der.encode(0xA1, der.generalized_time(revocation_time), reason_der)


@dataclass(frozen=True, slots=True)
class Issuer:
    """What a CertID's hashes stand for: an authority, and which of its names and keys."""

    authority: AuthorityRecord
    name: bytes
    public_key: bytes

    def cert_id(self, algorithm: HashAlgorithm, serial_number: bytes) -> CertID:
        """A certificate of this issuer, named with that algorithm (RFC 6960 §4.1.1)."""
        name_hash, key_hash = algorithm.digest(self.name), algorithm.digest(self.public_key)
        encoded = der.sequence(
            algorithm.algorithm_identifier,
            der.octet_string(name_hash),
            der.octet_string(key_hash),
            der.encode(der.INTEGER, serial_number),
        )
        return CertID(encoded, algorithm, algorithm.oid_der + name_hash + key_hash, serial_number)


def issuer_index(authorities: Iterable[AuthorityRecord]) -> Mapping[bytes, Issuer]:
    """From `CertID.issuer` to who that is: every name × every key × every hash algorithm (RFC 6960 §4.1.1).

    Two authorities that a CertID cannot tell apart are refused with `ConfigError`: an answer could be the other's.
    """
    index: dict[bytes, Issuer] = {}
    for authority in authorities:
        for algorithm in CERT_ID_HASHES:
            name_hashes = [(name, algorithm.digest(name)) for name in authority.names]
            for key in authority.public_keys:
                key_hash = algorithm.digest(key)
                for name, name_hash in name_hashes:
                    there = index.setdefault(algorithm.oid_der + name_hash + key_hash, Issuer(authority, name, key))
                    if there.authority is not authority:
                        raise ConfigError(
                            f"authorities {there.authority.name!r} and {authority.name!r} share a name and a key"
                        )
    return index


class ResponderTemplate:
    """The octets that every answer of one responder shares, and those that all answers of one second share."""

    __slots__ = ("_after_tbs", "_before_tbs", "_certs", "_instants", "_responder_id", "_times")

    def __init__(self, identity: Identity, *, by_name: bool = False, with_certificate: bool = True) -> None:
        # byKey [2], the choice that RFC 9919 §3.2.2 demands of new responders; byName [1] for clients that want it.
        self._responder_id = (
            der.encode(0xA1, identity.view.subject)
            if by_name
            else der.encode(0xA2, der.octet_string(identity.view.key_hash))
        )
        # RFC 9919 §3.2.2: the delegated certificate travels along. First and alone: clients exist that take the
        # first one without looking.
        # A CA that signs its answers itself leaves the field out (RFC 6960 §4.2.1).
        self._certs = der.encode(0xA0, der.sequence(identity.view.encoded)) if with_certificate else b""
        self._before_tbs: dict[int, bytes] = {}
        self._after_tbs = identity.signer.algorithm.algorithm_identifier
        self._instants: tuple[datetime, datetime, datetime] | None = None
        self._times = (b"", b"")

    def draft(
        self,
        answers: Iterable[tuple[bytes, bytes, bytes]],
        span: Span,
        *,
        nonce: bytes | None = None,
        extended_revoke: bool = False,
    ) -> Draft:
        """ResponseData: one SingleResponse for each CertID, its CertStatus and its singleExtensions ('' for none), all
        encoded, in the order asked (RFC 6960 §4.2.2.3).

        `nonce` is the extnValue element of the request; it comes back as it was. `extended_revoke` announces that
        certificates which were never issued are answered as revoked.
        """
        instants = (span.produced_at, span.this_update, span.next_update)
        if self._instants != instants:
            this_update = der.generalized_time(span.this_update)
            self._instants = instants
            self._times = (
                self._responder_id + der.generalized_time(span.produced_at),
                this_update + der.encode(0xA0, der.generalized_time(span.next_update)),
            )
        responder_id_and_produced_at, times = self._times
        responses = b""
        for cert_id, cert_status, single_extensions in answers:
            response = cert_id + cert_status + times + single_extensions
            responses += der.head(der.SEQUENCE, len(response)) + response
        data = responder_id_and_produced_at + der.head(der.SEQUENCE, len(responses)) + responses
        extensions = b""
        if nonce is not None:
            extensions = der.head(der.SEQUENCE, len(ID_PKIX_OCSP_NONCE) + len(nonce)) + ID_PKIX_OCSP_NONCE + nonce
        if extended_revoke:
            extensions += EXTENDED_REVOKE
        if extensions:
            data += der.encode(0xA1, der.sequence(extensions))
        return Draft(der.head(der.SEQUENCE, len(data)) + data, self)

    def seal(self, tbs: bytes, signature: bytes) -> bytes:
        """See `Draft.seal`."""
        before, between, after = self.frame(len(tbs), len(signature))
        return b"".join((before, tbs, between, signature, after))

    def frame(self, tbs_octets: int, signature_octets: int) -> tuple[bytes, bytes, bytes]:
        """What a sealed OCSPResponse has before ResponseData, between it and the signature, and after that."""
        between = self._after_tbs + der.head(der.BIT_STRING, signature_octets + 1) + b"\x00"
        length = tbs_octets + len(between) + signature_octets + len(self._certs)
        before = self._before_tbs.get(length)
        if before is None:
            before = self._before_tbs[length] = _response_prefix(length)
        return before, between, self._certs


def _response_prefix(length: int) -> bytes:
    """All octets of an OCSPResponse before ResponseData, when `length` octets of BasicOCSPResponse content follow."""
    prefix = der.head(der.SEQUENCE, length)
    prefix = ID_PKIX_OCSP_BASIC + der.head(der.OCTET_STRING, len(prefix) + length) + prefix
    prefix = der.head(der.SEQUENCE, len(prefix) + length) + prefix
    prefix = b"\x0a\x01\x00" + der.head(0xA0, len(prefix) + length) + prefix
    return der.head(der.SEQUENCE, len(prefix) + length) + prefix


@dataclass(slots=True)
class Draft:
    """An answer without its signature. `tbs` is the DER of ResponseData, the octets to sign."""

    tbs: bytes
    template: ResponderTemplate

    def seal(self, signature: bytes) -> bytes:
        """The whole OCSPResponse with status successful (RFC 6960 §4.2.1)."""
        return self.template.seal(self.tbs, signature)
