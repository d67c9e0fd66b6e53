"""What an answer to an honest client must be, and the words for a refusal.

`Judge` looks at an answer after the flood is over, so that the looking costs the measurement nothing; each answer
carries the time at which it came.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asn1crypto import cms, tsp
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import ocsp

from lakthan import der
from support import tsa

TRY_LATER = bytes.fromhex("30030a0103")
# What a systemFailure says, when it means that many wait for the key.
_KEY_IS_BUSY = b"too many requests wait for the key"
# What the certificates of a token profile claim about its time (`accuracy`, PT1S), and the second that OCSP rounds to.
_TOLERANCE = timedelta(seconds=1)


@dataclass(frozen=True)
class Question:
    """What is sent, and what its answer is held against. `kind`: what it costs the service; `signer`: whose signature
    the answer must have; `nonce`: of the token or the answer, None: none.
    """

    kind: str
    octets: bytes
    signer: x509.Certificate
    serial_number: int = 0
    nonce: bytes | None = None
    imprint: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What came. `asked`, `received`: when, in seconds since 1970; `seconds`: how long it took."""

    question: Question
    head: bytes
    body: bytes
    asked: float
    received: float
    seconds: float


def post(body: bytes, fields: bytes = b"", path: bytes = b"/") -> bytes:
    """A whole POST."""
    return b"POST %b HTTP/1.1\r\nHost: floods.example\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path,
        fields,
        len(body),
        body,
    )


def content_length(head: bytes) -> int:
    """Of a response's head. Raises `ValueError` when it has none."""
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def refusal(service: str, head: bytes, body: bytes) -> str:
    """The word for a refusal: `tryLater`, an HTTP status, or why a TimeStampResp has no token; '' for an answer."""
    status = head[9:12].decode("ascii", "replace")
    if status != "200":
        return status
    if service == "ocsp":
        return "tryLater" if body == TRY_LATER else "" if len(body) > 20 else f"OCSP {body.hex()}"
    if _KEY_IS_BUSY in body:
        return "key busy"
    return "" if body[4:9] == b"\x30\x03\x02\x01\x00" or len(body) > 300 else "systemFailure"


def problem(service: str, answer: Answer) -> str:
    """What is wrong with an answer that is no refusal; '' when nothing is."""
    try:
        return _ocsp_problem(answer) if service == "ocsp" else _token_problem(answer)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
        return f"{type(error).__name__}: {error}"


def _verify(signer: x509.Certificate, signature: bytes, octets: bytes) -> None:
    key = signer.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, octets, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, octets, ec.ECDSA(hashes.SHA256()))


def _ocsp_problem(answer: Answer) -> str:
    question, response = answer.question, ocsp.load_der_ocsp_response(answer.body)
    _verify(question.signer, response.signature, response.tbs_response_bytes)
    if response.serial_number != question.serial_number:
        return "another certificate"
    if response.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        return "another status"
    if question.nonce is not None and question.nonce not in response.tbs_response_bytes:
        return "another nonce"
    received = datetime.fromtimestamp(answer.received, UTC)
    if response.this_update_utc > received + _TOLERANCE:
        return "thisUpdate is in the future"
    if response.next_update_utc is None:
        return "without nextUpdate"
    if response.next_update_utc <= received:
        return "nextUpdate is over"
    return ""


def _token_problem(answer: Answer) -> str:
    question = answer.question
    signed: cms.SignedData = tsa.token_of(answer.body)["content"]
    info: tsp.TSTInfo = signed["encap_content_info"]["content"].parsed
    if info["message_imprint"]["hashed_message"].native != question.imprint:
        return "another imprint"
    if info["nonce"].native != int.from_bytes(question.nonce or b"", "big"):
        return "another nonce"
    earliest, latest = (datetime.fromtimestamp(each, UTC) for each in (answer.asked, answer.received))
    if not earliest - _TOLERANCE <= info["gen_time"].native <= latest + _TOLERANCE:
        return "another time"
    signer = signed["signer_infos"][0]
    attributes = {each["type"].native: each["values"] for each in signer["signed_attrs"]}
    digest = hashlib.new(signer["digest_algorithm"]["algorithm"].native)
    digest.update(signed["encap_content_info"]["content"].contents)
    if attributes["message_digest"][0].native != digest.digest():
        return "another content was signed"
    _verify(question.signer, signer["signature"].native, der.encode(0x31, signer["signed_attrs"].contents))
    return ""
