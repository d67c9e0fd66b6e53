"""What is flooded: an OCSP responder with two authorities and a time-stamp authority, real processes on a real
PostgreSQL, and what their clients ask.
"""

from __future__ import annotations

import collections
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asn1crypto import cms, tsp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from lakthan import der
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest
from support import tsa
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import request_for
from support.service_process import ServiceProcess

QUIET, NOISY = "quiet", "noisy"
CERTIFICATES = 300
TRY_LATER = bytes.fromhex("30030a0103")
_LOGINS = {"ocsp": "lakthan_responder", "tsa": "lakthan_tsa"}


@dataclass(frozen=True)
class Question:
    """What is sent, and what its answer is held against. `nonce`: of the token or the answer; None: none."""

    octets: bytes
    serial_number: int = 0
    nonce: bytes | None = None
    imprint: bytes = b""


class House:
    """Start it with `open`, end it with `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._postgres = EmbeddedPostgres(folder / "database")
        self.authorities = {QUIET: new_ca("Quiet CA"), NOISY: new_ca("Noisy CA")}
        self._responders = {
            QUIET: new_responder(self.authorities[QUIET]),
            NOISY: new_responder(self.authorities[NOISY], kind="RSA-4096"),
        }
        self._unit = tsa.new_unit()
        self.certificates: dict[str, list[Issued]] = {
            name: [issue(f"{name} {number}", ca) for number in range(CERTIFICATES if name == QUIET else 10)]
            for name, ca in self.authorities.items()
        }
        config = folder / "lakthan.toml"
        self.ocsp = ServiceProcess("lakthan_ocsp", config, folder / "ocsp.log")
        self.tsa = ServiceProcess("lakthan_tsa", config, folder / "tsa.log")

    async def open(self) -> None:
        """Database, certificates, services."""
        self._postgres.start()
        await migrate(self._postgres.url())
        await self._postgres.ensure_logins(_LOGINS)
        pool = await open_pool(
            self._postgres.url(), role="lakthan_registry", min_size=1, max_size=2, application_name="floods"
        )
        try:
            for name, ca in self.authorities.items():
                authority = await AuthorityAdmin(pool).add_authority(name, [ca.der])
                numbers = [each.serial_number for each in self.certificates[name]]
                changes = [ChangeRequest(authority, each, Change.ISSUE) for each in numbers]
                await ChangeWriter(pool).record(changes, actor="floods")
        finally:
            await pool.close()
        self._write()
        for service in (self.ocsp, self.tsa):
            service.start()
        for service in (self.ocsp, self.tsa):
            await service.until_serving()

    def close(self) -> list[str]:
        """Stop all of it. What the services logged as errors, and codes they did not end well with."""
        complaints = []
        for service in (self.ocsp, self.tsa):
            if service.running:
                said = collections.Counter(
                    str(each.get("event")) for each in service.events() if each["level"] == "error"
                )
                complaints += [f"{service.module} logged {times} times: {event}" for event, times in said.items()]
                code = service.stop()
                complaints += [f"{service.module} ended with {code}"] if code else []
            else:
                complaints.append(f"{service.module} ended by itself with {service.exit_code}")
        self._postgres.stop()
        return complaints

    def _write(self) -> None:
        for name, responder in self._responders.items():
            responder.write(self._folder, name)
        self._unit.write(self._folder)
        responders = "".join(
            f'[[ocsp.responders]]\nauthority = "{name}"\ncertificate = "{name}.pem"\nkey = "file:{name}.key"\n'
            for name in self._responders
        )
        (self._folder / "lakthan.toml").write_text(
            f"""[ocsp]
port = 0
admin_port = 0
database.url = "{self._postgres.url("ocsp")}"
{responders}
[tsa]
port = 0
admin_port = 0
clock.mode = "warn"
database.url = "{self._postgres.url("tsa")}"
[tsa.units.main]
certificate = "tsu.pem"
key = "file:tsu.key"
chain = "chain.pem"
[tsa.profiles.default]
units = ["main"]
"""
        )

    def memory(self, service: ServiceProcess) -> int:
        """Resident octets of a service."""
        process = service._process
        assert process is not None
        status = Path(f"/proc/{process.pid}/statm").read_text()
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def questions(self) -> Iterator[tuple[str, Question]]:
        """What honest clients ask, again and again: the service and the question."""
        asked = self.certificates[QUIET]
        while True:
            often, seldom = asked[0], secrets.choice(asked)
            yield "ocsp", self.ocsp_question(often, QUIET)
            yield "ocsp", self.ocsp_question(seldom, QUIET, nonce=secrets.token_bytes(32))
            yield "ocsp", self.ocsp_question(seldom, QUIET)
            yield "tsa", self.token_question()

    def ocsp_question(self, certificate: Issued, authority: str, nonce: bytes | None = None) -> Question:
        """A whole POST."""
        body = request_for(certificate, self.authorities[authority], nonce=nonce)
        return Question(post(body), certificate.certificate.serial_number, nonce)

    def token_question(self) -> Question:
        """The same for a token."""
        imprint, nonce = secrets.token_bytes(32), secrets.randbits(63)
        return Question(post(tsa.request_for(imprint, nonce=nonce)), imprint=imprint, nonce=nonce.to_bytes(8, "big"))

    def problem(self, service: str, question: Question, head: bytes, body: bytes) -> str:
        """What is wrong with an answer, '' when nothing is; `refused …` for a refusal in the protocol's words."""
        word = refusal(service, head, body)
        if word:
            return f"refused {word}"
        try:
            return self._ocsp_problem(question, body) if service == "ocsp" else self._token_problem(question, body)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            return f"{type(error).__name__}: {error}"

    def _ocsp_problem(self, question: Question, body: bytes) -> str:
        answer = ocsp.load_der_ocsp_response(body)
        responder = self._responders[QUIET].certificate
        key = responder.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
        if answer.serial_number != question.serial_number:
            return "another certificate"
        if answer.certificate_status is not ocsp.OCSPCertStatus.GOOD:
            return "another status"
        if question.nonce is not None and question.nonce not in answer.tbs_response_bytes:
            return "another nonce"
        return ""

    def _token_problem(self, question: Question, body: bytes) -> str:
        signed: cms.SignedData = tsa.token_of(body)["content"]
        info: tsp.TSTInfo = signed["encap_content_info"]["content"].parsed
        if info["message_imprint"]["hashed_message"].native != question.imprint:
            return "another imprint"
        if info["nonce"].native != int.from_bytes(question.nonce or b"", "big"):
            return "another nonce"
        signer = signed["signer_infos"][0]
        attributes = {each["type"].native: each["values"] for each in signer["signed_attrs"]}
        digest = hashlib.new(signer["digest_algorithm"]["algorithm"].native)
        digest.update(signed["encap_content_info"]["content"].contents)
        if attributes["message_digest"][0].native != digest.digest():
            return "another content was signed"
        key = self._unit.leaf.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        octets = der.encode(0x31, signer["signed_attrs"].contents)
        key.verify(signer["signature"].native, octets, ec.ECDSA(hashes.SHA256()))
        return ""


def post(body: bytes, fields: bytes = b"") -> bytes:
    """A whole POST."""
    return b"POST / HTTP/1.1\r\nHost: floods.example\r\n%bContent-Length: %d\r\n\r\n%b" % (fields, len(body), body)


def refusal(service: str, head: bytes, body: bytes) -> str:
    """The word for a refusal: `tryLater`, an HTTP status, or a TimeStampResp without token; '' for an answer."""
    status = head[9:12].decode("ascii", "replace")
    if status != "200":
        return status
    if service == "ocsp":
        return "tryLater" if body == TRY_LATER else "" if len(body) > 20 else f"OCSP {body.hex()}"
    return "" if body[4:9] == b"\x30\x03\x02\x01\x00" or len(body) > 300 else "systemFailure"
