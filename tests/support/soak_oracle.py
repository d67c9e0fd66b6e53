"""Who judges what the clients of a soak get: every status by the truth, and of some answers everything.

Of every OCSP answer the serial number, the status, the times and the key are looked at, of one in so many, and of each
that is signed by a key for the first time, the signature. So it is with tokens, by the readers of `./run endure` and
`./run rollover`. No code of the services takes part.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import asyncpg
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from faults.truth import History
from lakthan import der
from lakthan.store.feed import BOUND
from support.endure_clients import Ledger
from support.pki import Issued
from support.rollover import Exchange, verify_token
from support.soak_diary import Diary
from support.soak_world import AHEAD, LIVE, Key, World
from support.tsa import failure

_SAMPLED = 20
_SINGLE = {
    ocsp.OCSPCertStatus.GOOD: "good",
    ocsp.OCSPCertStatus.REVOKED: "revoked",
    ocsp.OCSPCertStatus.UNKNOWN: "unknown",
}
# A published answer is withheld from the commit of a change, or of the issuance, until the publisher has signed it.
_WITHHELD_SECONDS = 15.0
_SECOND = timedelta(seconds=1)


class Issuer:
    """What names an authority in requests."""

    def __init__(self, ca: Issued) -> None:
        key = ca.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        self._name = sha256(ca.certificate.subject.public_bytes()).digest()
        self._key = sha256(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()

    def question(self, serial_number: int, nonce: bytes | None = None) -> bytes:
        """An OCSPRequest, DER."""
        builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
            self._name, self._key, serial_number, hashes.SHA256()
        )
        if nonce is not None:
            builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
        return builder.build().public_bytes(Encoding.DER)


class Oracle:
    """Knows the truth of both authorities. `checked`: signatures verified, by kind."""

    def __init__(self, world: World, diary: Diary) -> None:
        self._world = world
        self._diary = diary
        self.truth = {name: History(BOUND.total_seconds()) for name in (LIVE, AHEAD)}
        self.issuers = {name: Issuer(ca) for name, ca in world.cas.items()}
        self.ledger = Ledger(sample_every=1000)
        self.checked: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.renewed: Counter[str] = Counter()
        self.withheld = 0
        self._signed: set[str] = set()  # keys seen to have signed
        self._latest: dict[tuple[str, int], datetime] = {}  # producedAt, of a certificate
        self._announced: dict[int, float] = {}
        self._tokens = 0

    def has_signed(self, key: Key) -> bool:
        """Whether a verified answer or token of this key has come."""
        return key.name in self._signed

    def judge(
        self, of: str, authority: str, serial_number: int, *, nonce: bytes | None, sent: float, body: bytes
    ) -> str:
        """What is no answer, in a word; '' for an answer, right or wrong, of which the diary has what is wrong."""
        heard = time.monotonic()
        try:
            response = ocsp.load_der_ocsp_response(body)
        except ValueError:
            self._diary.wrong(f"{of}: what came is no OCSPResponse: {body[:40].hex()}")
            return ""
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            word = response.response_status.name.lower()
            if word == "try_later" and authority == AHEAD and self._changes(serial_number, sent):
                self.withheld += 1
                return ""
            return word
        self.answers[of] += 1
        for problem in self._problems(
            of, authority, serial_number, nonce=nonce, sent=sent, heard=heard, response=response
        ):
            self._diary.wrong(f"{of}, serial number {serial_number:X} of {authority}: {problem}")
        return ""

    def announce(self, serial_number: int) -> None:
        """It was issued just now: the publisher owes its first answer."""
        self._announced[serial_number] = time.monotonic()

    def _changes(self, serial_number: int, sent: float) -> bool:
        if self._announced.get(serial_number, -math.inf) > sent - _WITHHELD_SECONDS:
            return True
        turns = self.truth[AHEAD].turns.get(der.integer_content(serial_number), [])
        return any(turn.asked > sent - _WITHHELD_SECONDS or turn.acknowledged > sent for turn in turns)

    def _problems(
        self,
        of: str,
        authority: str,
        serial_number: int,
        *,
        nonce: bytes | None,
        sent: float,
        heard: float,
        response: ocsp.OCSPResponse,
    ) -> list[str]:
        found = []
        if response.serial_number != serial_number:
            found.append("the answer is about another certificate")
        said = _SINGLE[response.certificate_status]
        if of == "never issued":
            if said != "unknown":
                found.append(f"{said}, of a certificate that was never issued")
        elif said == "unknown" or not self.truth[authority].could_be(
            der.integer_content(serial_number),
            said,  # type: ignore[arg-type]
            sent,
            heard,
        ):
            found.append(f"{said}, which cannot be")
        now = datetime.now(UTC)
        until, produced_at = response.next_update_utc, response.produced_at_utc
        if until is None or not response.this_update_utc <= produced_at <= now < until:
            found.append(f"out of its time: {response.this_update_utc}, {produced_at}, {until}, and it is {now}")
        if nonce is not None:
            echoed = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
            if echoed != nonce:
                found.append("another nonce")
        return found + self._judge_key(of, authority, serial_number, response)

    def _judge_key(self, of: str, authority: str, serial_number: int, response: ocsp.OCSPResponse) -> list[str]:
        keys = [each for each in self._world.keys[authority] if _key_hash(each) == response.responder_key_hash]
        if not keys:
            return ["nobody who may has signed it"]
        [key] = keys
        if response.produced_at_utc >= key.retired:
            return [f"signed at {response.produced_at_utc} by {key.name}, which was retired at {key.retired}"]
        before = self._latest.get((authority, serial_number))
        if of in ("GET", "POST", "published") and before != response.produced_at_utc:
            self._latest[authority, serial_number] = response.produced_at_utc
            self.renewed[of] += before is not None
        if key.name in self._signed and self.answers.total() % _SAMPLED:
            return []
        self.checked["OCSP"] += 1
        if not _holds(key.issued.certificate, response):
            return [f"the signature of {key.name} does not hold"]
        self._signed.add(key.name)
        return []

    def judge_token(self, request: bytes, imprint: bytes, nonce: bytes, sent_at: float, body: bytes) -> str:
        """As `judge`, of a TimeStampResp."""
        try:
            if not self.ledger.read(body, imprint, nonce):
                bits, _ = failure(body)
                return " ".join(sorted(bits))
        except (ValueError, LookupError) as error:
            self._diary.wrong(f"token: {type(error).__name__}: {error}")
            return ""
        self.answers["token"] += 1
        self._tokens += 1
        newest = self._world.keys["unit"][-1]
        if self._tokens % _SAMPLED and self.has_signed(newest):
            return ""
        self.checked["token"] += 1
        issued = {each.name: each.issued for each in self._world.keys["unit"]}
        try:
            verified = verify_token(Exchange(sent_at, time.time(), request, 200, body), issued)
        except (AssertionError, ValueError, InvalidSignature) as error:
            self._diary.wrong(f"token: {type(error).__name__}: {error}")
            return ""
        [key] = [each for each in self._world.keys["unit"] if each.name == verified.key]
        if verified.instant >= key.retired:
            self._diary.wrong(f"a token of {verified.instant} by {key.name}, which was retired at {key.retired}")
        if abs(verified.instant.timestamp() - time.time()) > 1 + time.time() - sent_at:
            self._diary.wrong(f"a token of {verified.instant}, at {datetime.now(UTC)}")
        self._signed.add(key.name)
        return ""

    async def compare(self) -> None:
        """In the end: nothing that was confirmed may be missing on record."""
        records, on_record = await _read(self._world.postgres.url())
        lost = [number for number, (digest, _) in self.ledger.granted.items() if records.get(number) != digest]
        for number in lost[:5]:
            self._diary.wrong(f"the token {number.hex()} is not on record as it was given")
        if lost[5:] or self.ledger.twice:
            self._diary.wrong(f"{len(lost)} tokens are lost, {len(self.ledger.twice)} serial numbers came twice")
        for name, history in self.truth.items():
            authority_id = self._world.authority_ids[name]
            for serial_number in history.turns:
                must, said = history.must_be(serial_number), on_record.get((authority_id, serial_number))
                if must is not None and must != said:
                    self._diary.wrong(f"{serial_number.hex()} of {name}: confirmed as {must}, on record as {said}")


async def _read(url: str) -> tuple[dict[bytes, bytes], dict[tuple[int, bytes], str]]:
    """Every token's SHA-256 by its serial number, and every certificate's status."""
    connection = await asyncpg.connect(url)
    try:
        tokens = await connection.fetch("SELECT serial_number, token_sha256 FROM timestamp_token", timeout=120)
        statuses = await connection.fetch(
            "SELECT authority_id, serial_number, cert_status::text FROM certificate_status", timeout=120
        )
    finally:
        await connection.close()
    return (
        {row["serial_number"]: row["token_sha256"] for row in tokens},
        {(row["authority_id"], row["serial_number"]): row["cert_status"] for row in statuses},
    )


def _key_hash(key: Key) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(key.issued.certificate.public_key()).digest


def _holds(certificate: x509.Certificate, response: ocsp.OCSPResponse) -> bool:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    if certificate not in response.certificates or not response.this_update_utc < certificate.not_valid_after_utc:
        return False
    try:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
