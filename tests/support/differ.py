"""Three readers of one OCSPRequest: ours, asn1crypto and pyca/cryptography; and why they disagree when they do.

A disagreement that has a known reason gets that reason as its name; any other is `UNEXPLAINED`, which is a finding.
"""

from __future__ import annotations

import re
import warnings

from asn1crypto import ocsp as asn1_ocsp
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import DuplicateExtension, UnsupportedGeneralNameType, ocsp

from lakthan import der
from lakthan_ocsp.syntax import RequestError, parse_request

UNEXPLAINED = "UNEXPLAINED"
ACCEPTED = ""
ABSTAINED = "abstained"

# What pyca says about requests that are accepted here. Each line is a decision of lakthan_ocsp.syntax.
_LOOSER = {
    r"EncodedDefault": "we take an explicit v1 or FALSE, which DER would leave out",
    r"CertID::serial_number": "we take needless leading octets in a serial number",
    r"CertID::hash_algorithm": "we take any parameters of a hash algorithm that no issuer is indexed under",
    r"Signature algorithm OID": "a hash algorithm that pyca does not know: nobody's issuer here",
    r"requestor_name|GeneralName|AttributeTypeValue": "we pass over requestorName unopened",
    r"optional_signature|Signature::": "we pass over the signature's parts unopened",
    r"Extension::extn_id": "we compare an extension's OID and do not look inside it",
    r"^extension: ": "we pass over values of extensions that have no effect",
}
# What we say about requests that pyca accepts.
_STRICTER = {
    r"a nonce of": "RFC 9654 §2.1 bounds the nonce, pyca does not",
    r"critical extension": "RFC 6960 §4.1.2 forbids to pass over a critical extension, pyca leaves it to its caller",
    r"a hash whose length": "a hash has the length of its algorithm",
    r"an empty list of extensions": "RFC 5280 §4.1 demands at least one extension in a list",
    r"basic response type|acceptable": "RFC 6960 §4.4.3 AcceptableResponses is opened here, and pyca does not open it",
    r"an extension twice": "pyca looks for duplicates in requestExtensions only",
}
_BER = "asn1crypto takes BER, wrong tags or octets left over; pyca refuses like we do"
_OPENED = "asn1crypto opens names, signatures and extension values that are passed over here; pyca accepts like we do"
_SEVERAL = "several certificates, which pyca does not read: "


def ours(octets: bytes) -> str:
    """Our verdict: '' or the reason for the refusal."""
    try:
        parse_request(octets, max_cert_ids=50)
    except RequestError as error:
        return str(error)
    return ACCEPTED


def asn1crypto(octets: bytes) -> str:
    """The verdict of asn1crypto in strict mode, with every field opened."""
    try:
        with warnings.catch_warnings(action="ignore"):
            asn1_ocsp.OCSPRequest.load(octets, strict=True).native  # noqa: B018 - reading it is the test
    except Exception as error:  # noqa: BLE001 - its ways of refusing include stumbling, AttributeError for one
        return str(error) or type(error).__name__
    return ACCEPTED


def pyca(octets: bytes) -> str:
    """The verdict of pyca/cryptography, which reads requests for one certificate and abstains from others."""
    try:
        request = ocsp.load_der_ocsp_request(octets)
    except NotImplementedError:
        return ABSTAINED
    except ValueError as error:
        return str(error)
    try:
        with warnings.catch_warnings(action="ignore"):
            request.hash_algorithm, request.serial_number  # noqa: B018 - as above
    except (ValueError, UnsupportedAlgorithm) as error:
        return str(error)
    try:
        with warnings.catch_warnings(action="ignore"):
            request.extensions  # noqa: B018 - as above
    except (ValueError, DuplicateExtension, UnsupportedAlgorithm, UnsupportedGeneralNameType) as error:
        return f"extension: {error}"
    return ACCEPTED


def difference(octets: bytes) -> str | None:
    """Why the three disagree about these octets; None when they do not."""
    we, they, rust = ours(octets), asn1crypto(octets), pyca(octets)
    if rust == ABSTAINED:
        if (we == ACCEPTED) == (they == ACCEPTED):
            return None
        return _OPENED if we == ACCEPTED else _SEVERAL + (_named(_STRICTER, we) or re.sub(r"0x..|\d+", "N", we))
    if (we == ACCEPTED) == (rust == ACCEPTED):
        if (they == ACCEPTED) == (we == ACCEPTED):
            return None
        return _OPENED if we == ACCEPTED else _BER
    if we == ACCEPTED:
        return _named(_LOOSER, rust) or f"{UNEXPLAINED}: accepted, but pyca says: {rust}: {octets.hex()}"
    if they != ACCEPTED:
        return _named(_STRICTER, we) or "pyca does not open what we and asn1crypto refuse"
    reason = _named(_STRICTER, we)
    if reason is None and ours(_bare(octets)) == ACCEPTED:
        return "we read signatures, and values of extensions that we use, to their end, and the others do not"
    return reason or f"{UNEXPLAINED}: accepted by pyca and asn1crypto, but we say: {we}: {octets.hex()}"


def _bare(octets: bytes) -> bytes:
    """The same CertIDs and nothing else; the others have read the request, so there is one."""
    tbs_request = der.Reader(octets).enter(der.SEQUENCE).enter(der.SEQUENCE)
    while tbs_request.peek() in (0xA0, 0xA1):
        tbs_request.head()
    request_list = tbs_request.enter(der.SEQUENCE)
    cert_ids = []
    while request_list.more():
        cert_ids.append(request_list.enter(der.SEQUENCE).element(der.SEQUENCE))
    return der.sequence(der.sequence(der.sequence(*map(der.sequence, cert_ids))))


def _named(reasons: dict[str, str], text: str) -> str | None:
    return next((reason for pattern, reason in reasons.items() if re.search(pattern, text)), None)
