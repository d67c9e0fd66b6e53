"""`python -m support.fuzz_seeds`: write the seeds of the fuzzer, tests/fuzz/seeds, from real messages of every kind.

They are committed; this is how to make them anew. Small on purpose: libFuzzer works best on short inputs.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView
from lakthan.identity import Identity
from lakthan.keys.software import SoftwareSigner
from lakthan.store.records import AuthorityRecord, CRLReason
from lakthan_ocsp import responder
from lakthan_ocsp.governor import Span
from lakthan_ocsp.syntax import OCSPResponseStatus
from lakthan_tsa import authority
from lakthan_tsa.syntax import parse_request
from support.crl import Listed, entry, new_crl
from support.fuzz_targets import _HASHES, _POLICIES, FOLDER, NOW, TARGETS, a_request, a_unit, ca, encoded
from support.mutate import Named, honest_requests
from support.pki import issue

_NTP = b"\x24\x02\x06\xe9" + bytes(4) + bytes(4) + b"GPS\0" + bytes(8) + bytes(range(8)) + b"\xeb" * 8 + b"\xeb" * 8
_KEY_LIST = """[[key]]
certificate = "a.pem"
sha256 = "{digest}"
name = "CN=A"
key = "file:a.key"
installed = 2026-01-01T00:00:00Z
"""
_INDEX = (
    b"V\t270101000000Z\t\t3FA2\tunknown\t/CN=a\n",
    b"R\t270101000000Z\t260101000000Z,keyCompromise\t3FA3\tunknown\t/CN=b\n",
    b"R\t20270101000000Z\t260101000000Z,keyTime,20250101000000Z\t-0A\tunknown\t/CN=c\nE\t250101000000Z\t\t01\tx\t/\n",
)
_CSV = (
    b"serial_number,status,revocation_time,reason\n3fa2,good,,\n3fa3,revoked,2026-01-01T00:00:00Z,superseded\n",
    b'serial;not after;sha256\n"12";2027-01-01;' + b"ab" * 32 + b"\n",
    b"\xef\xbb\xbfserial_number\tinvalidity_date\n0x10\t2026-01-01 08:00:00+07:00\n",
)
_URIS = (
    "pkcs11:token=prod;object=ocsp?module-path=/usr/lib/softhsm.so&pin-source=/run/pin&x-sessions=4",
    "pkcs11:id=%01%02;serial=1?module-path=a&x-mechanism=0x1041&x-input=digest&x-deadline=10",
    "file:ocsp.pem?pin-source=pin",
    "vault:transit/keys/ocsp?address=https://vault.example:8200&role=r&x-sessions=8",
    "awskms:alias/ocsp?region=ap-southeast-1",
)
_HTTP = (
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /MEUw HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /elsewhere HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
)


def _static() -> bytes:
    """An answer that the CA has signed itself, as in a ceremony."""
    view = CertificateView.from_der(ca().der)
    speaker = Identity(view, SoftwareSigner(ca().key))
    issuer = responder.Issuer(AuthorityRecord(1, "fuzzed", (), (), ()), view.subject, view.public_key)
    named = issuer.cert_id(HashAlgorithm.SHA_256, b"\x05")
    span = Span(NOW, NOW, NOW + timedelta(days=30), NOW)
    draft = responder.ResponderTemplate(speaker, with_certificate=False).draft(
        [(named.encoded, responder.GOOD, b"")], span
    )
    return draft.seal(speaker.signer._raw_sign(draft.tbs))  # type: ignore[attr-defined]


async def made() -> dict[str, list[bytes]]:
    """The seeds of each target."""
    maker, unit = ca(), a_unit()
    leaf = issue("leaf", maker, serial_number=0x3FA2)
    named = Named(unit.view.issuer, b"key")
    requests = [one for one in honest_requests([named], [b"\x05", bytes(range(1, 21))]) if len(one) < 600][:24]
    stamp = a_request()
    asked = parse_request(stamp, offered_policies=_POLICIES, hashes=_HASHES)
    template = authority.TokenTemplate(unit, policy="1.2.3.4.1", accuracy=timedelta(seconds=1))
    draft = authority.draft(asked, template, serial_number=b"\x05", gen_time=NOW)
    token = draft.seal(await unit.signer.sign(draft.tbs))
    crls = [
        new_crl(maker, Listed([entry(b"\x05"), entry(b"\x06", CRLReason.KEY_COMPROMISE.value)], number=3)),
        new_crl(maker, Listed([entry(b"\x07", CRLReason.REMOVE_FROM_CRL.value)], number=4, base=3)),
        new_crl(maker, Listed([])),
    ]
    pem = leaf.certificate.public_bytes(Encoding.PEM)
    item = {"change": "revoke", "serial_number": "3FA2", "reason": "keyCompromise"}
    granted = der.sequence(der.sequence(der.integer(0)), token)
    answer = responder.refusal(OCSPResponseStatus.TRY_LATER)
    times = der.sequence(der.integer(-1), der.object_identifier("1.2.840.113549"), der.generalized_time(NOW))
    manifest = f"{hashlib.sha256(b'a').hexdigest()}  arl.crl\n{'0' * 64}  answers/1.der\n".encode()
    return {
        "der": [times, leaf.der, *crls, stamp],
        "ocsp": requests,
        "ocsp-get": [quote(f"/{base64.b64encode(one).decode()}").encode() for one in requests[:4]]
        + [b"/" + base64.urlsafe_b64encode(one).rstrip(b"=") for one in requests[:2]],
        "tsp": [stamp, stamp.replace(b"\x02\x01\x4d", b""), der.sequence(der.integer(1))],
        "token": [token],
        "crl": [*crls, b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(crls[2]) + b"-----END X509 CRL-----\n"],
        "http": [bytes((255, way)) + one for one in _HTTP for way in (0, 1, 2)]
        + [bytes((cut, 4)) + one for one in _HTTP for cut in (7, 40)],
        "registry": [
            encoded({"changes": [item, {**item, "change": "unhold"}]}),
            encoded({"changes": [{"change": "issue", "certificate": pem.decode()}]}),
            encoded({"name": "a", "certificates": [pem.decode()]}),
            encoded({"pem": pem.decode(), "status": "revoked", "revocationDate": "2026-01-01 00:00:00 ICT"}),
        ],
        "certificate": [leaf.der, pem, maker.der, base64.b64encode(leaf.der), pem + pem],
        "index-txt": list(_INDEX),
        "csv": list(_CSV),
        "key-list": [_KEY_LIST.format(digest="ab" * 32).encode()],
        "key-uri": [uri.encode() for uri in _URIS],
        "ceremony": [manifest, answer, _static(), crls[2]],
        "clock": [_NTP, b"\x06\x02" + bytes(102)],
        "shown": [granted, token, stamp, answer, requests[0], base64.b64encode(requests[0])],
        "warm-file": [b'["instant",1770000000.0]', b'["whole"]', b'["changed",1,"AAAF"]'],
    }


def main() -> None:
    """Write them, each under the digest of its octets."""
    seeds = asyncio.run(made())
    for name in TARGETS:
        folder = FOLDER / "seeds" / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for octets in seeds[name]:
            TARGETS[name].run(octets)
            Path(folder / hashlib.sha256(octets).hexdigest()[:16]).write_bytes(octets)


if __name__ == "__main__":
    main()
