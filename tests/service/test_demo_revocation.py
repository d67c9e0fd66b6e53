"""A CA revokes a certificate, and every client learns it: on a running demo, under questions, by the command line."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from support.demo import Demo, on_free_ports, running


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A running demo whose spare certificates the tests use up."""
    with running(tmp_path_factory.mktemp("revocation") / "demo", *on_free_ports()) as demo:
        yield demo


@dataclass(frozen=True)
class Answer:
    """What one question brought. `asked` and `heard`: on the monotonic clock, in seconds."""

    asked: float
    heard: float
    heard_at: datetime
    response: ocsp.OCSPResponse

    @property
    def status(self) -> str:
        """The word of RFC 6960."""
        return self.response.certificate_status.name.lower()


@dataclass
class Client:
    """Asks about one certificate on one connection; with `nonce`, so that no answer can come from a cache."""

    demo: Demo
    path: Path
    nonce: bool = False
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        where = urlsplit(self.demo.urls["ocsp"])
        self._connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
        certificate, issuer = certificate_of(self.path), certificate_of(self.path.with_name("ca.pem"))
        self._request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1())

    def ask(self) -> Answer:
        """One question, and its answer."""
        request = self._request
        if self.nonce:
            request = request.add_extension(x509.OCSPNonce(secrets.token_bytes(32)), critical=False)
        encoded = request.build().public_bytes(Encoding.DER)
        asked = time.monotonic()
        self._connection.request("POST", "/", encoded, {"Content-Type": "application/ocsp-request"})
        body = self._connection.getresponse().read()
        answer = Answer(asked, time.monotonic(), datetime.now(UTC), ocsp.load_der_ocsp_response(body))
        self.answers.append(answer)
        return answer

    def until(self, status: str) -> Answer:
        """Ask until the answer is this one. Raises `AssertionError` after ten seconds of another."""
        deadline = time.monotonic() + 10
        while (answer := self.ask()).status != status:
            assert time.monotonic() < deadline, f"still {answer.status}"
        return answer

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


@pytest.fixture
def client(demo: Demo) -> Iterator[Client]:
    """A client that asks about spare-2.pem."""
    client = Client(demo, demo.pki / "spare-2.pem")
    yield client
    client.close()


def certificate_of(path: Path) -> x509.Certificate:
    """The certificate in a PEM file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize(("folder", "authority"), [(".", "public-ca"), ("gov", "gov-ca")])
def test_from_the_first_revoked_answer_on_nobody_hears_good(demo: Demo, folder: str, authority: str) -> None:
    """While four clients ask without pause, with and without a nonce, the certificate is revoked by its serial number.
    Each client hears `revoked` soon (the time is printed), and no question asked after the first `revoked` was heard,
    by whomever, is answered `good`.
    """
    path = demo.pki / folder / "spare-1.pem"
    clients = [Client(demo, path, nonce=number % 2 == 1) for number in range(4)]
    stop = threading.Event()

    def ask_on(client: Client) -> None:
        while not stop.is_set():
            client.ask()

    threads = [threading.Thread(target=ask_on, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: all(len(client.answers) >= 50 for client in clients))
        serial = f"{certificate_of(path).serial_number:x}"
        done = demo.lakthan("revoke", "--authority", authority, "--serial", serial, "--reason", "superseded")
        returned = time.monotonic()
        assert done.returncode == 0, done.stderr
        wait_for(lambda: all(client.answers[-1].status == "revoked" for client in clients))
        seen = [len(client.answers) for client in clients]
        wait_for(lambda: all(len(client.answers) >= n + 200 for client, n in zip(clients, seen, strict=True)))
    finally:
        stop.set()
        for thread, client in zip(threads, clients, strict=True):
            thread.join()
            client.close()

    answers = [answer for client in clients for answer in client.answers]
    first = min((answer for answer in answers if answer.status == "revoked"), key=lambda answer: answer.heard)
    recorded = datetime.fromisoformat(history(demo, path)[-1]["recorded_at"])
    milliseconds = (first.heard_at - recorded).total_seconds() * 1000
    print(
        f"{authority}: first `revoked` {milliseconds:.1f} ms after the change was recorded (its transaction's begin), "
        f"{(first.heard - returned) * 1000:+.1f} ms relative to the return of `lakthan revoke`; {len(answers)} answers"
    )
    assert first.response.revocation_reason is x509.ReasonFlags.superseded
    assert {answer.status for answer in answers if answer.asked > first.heard} == {"revoked"}
    assert {answer.status for answer in answers} == {"good", "revoked"}


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` holds. Raises `AssertionError` after 30 seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.002)


def history(demo: Demo, path: Path) -> list[dict[str, str]]:
    """All changes of a certificate, as `lakthan status --json` tells them."""
    done = demo.lakthan("status", "--json", path)
    assert done.returncode == 0, done.stderr
    changes: list[dict[str, str]] = json.loads(done.stdout)["history"]
    return changes


def test_hold_and_unhold(demo: Demo, client: Client) -> None:
    """A suspension is heard as certificateHold, its end as good, and the record has every step with its author."""
    assert client.ask().status == "good"
    for _ in range(2):
        assert demo.lakthan("hold", client.path).returncode == 0
        held = client.until("revoked").response
        assert held.revocation_reason is x509.ReasonFlags.certificate_hold
        assert "held since" in demo.lakthan("status", client.path).stdout
        assert demo.lakthan("unhold", client.path).returncode == 0
        client.until("good")
    changes = history(demo, client.path)
    assert [change["change"] for change in changes] == ["issue", "hold", "unhold", "hold", "unhold"]
    assert {change["actor"].split(":")[0] for change in changes[1:]} == {"cli"}


def test_a_held_certificate_revoked_for_good(demo: Demo) -> None:
    """Who is held can be revoked, the reason in the answers changes, and there is no way back."""
    path = demo.pki / "gov/spare-3.pem"
    client = Client(demo, path)
    assert demo.lakthan("hold", path).returncode == 0
    client.until("revoked")
    assert demo.lakthan("revoke", path, "--reason", "keyCompromise").returncode == 0
    wait_for(lambda: client.ask().response.revocation_reason is x509.ReasonFlags.key_compromise)
    refused = demo.lakthan("unhold", path)
    client.close()
    assert refused.returncode == 1
    assert "revoked for good" in refused.stderr


def test_a_certificate_that_was_never_announced_can_be_revoked(demo: Demo) -> None:
    """Unissued.pem is unknown to the responder until somebody revokes it."""
    path = demo.pki / "gov/unissued.pem"
    client = Client(demo, path)
    assert client.ask().status == "unknown"
    assert demo.lakthan("revoke", path).returncode == 0
    client.until("revoked")
    client.close()
