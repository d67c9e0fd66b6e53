"""OpenSSL, curl and pyHanko as clients of the demo's time-stamp authority: tokens verify, refusals explain."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from pyhanko.sign.timestamps import HTTPTimeStamper

from support.demo import Demo
from support.programs import need

POLICY = "0.4.0.2023.1.1"
OTHER_POLICY = "1.2.3.4.5"
Stamp = Callable[..., "Stamped"]


class Stamped:
    """A query and its reply in files, as OpenSSL sees them."""

    def __init__(self, folder: Path, demo: Demo) -> None:
        self._folder = folder
        self._pki = demo.pki
        self.query = folder / "request.tsq"
        self.reply = folder / "response.tsr"

    def openssl(self, *arguments: str | Path) -> str:
        """All that `openssl ts` prints."""
        return run(need("openssl"), "ts", *arguments, cwd=self._folder)

    def verify(self, *, untrusted: Path | None = None, root: str = "tsa-root.pem") -> str:
        """What `openssl ts -verify` prints, with the root alone as anchor."""
        given: list[str | Path] = ["-queryfile", self.query, "-in", self.reply]
        trust: list[str | Path] = ["-CAfile", self._pki / root, "-untrusted", untrusted or self._pki / "tsa-chain.pem"]
        return self.openssl("-verify", *given, *trust)

    @property
    def text(self) -> str:
        """The reply in words."""
        return self.openssl("-reply", "-in", self.reply, "-text")


def run(*command: str | Path, cwd: Path) -> str:
    """All that a program prints."""
    done = subprocess.run(
        command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )
    return done.stdout


def send(demo: Demo, stamped: Stamped, *options: str) -> str:
    """Carry the query to the authority with curl; gives HTTP status and media type."""
    headers = list(options)
    if not any(option.startswith("Content-Type:") for option in options):
        headers += ["-H", "Content-Type: application/timestamp-query"]
    body = ["--data-binary", f"@{stamped.query}", "-o", str(stamped.reply), "-w", "%{http_code} %{content_type}"]
    return run(need("curl"), "-sS", *headers, *body, demo.urls["tsa"], cwd=stamped.query.parent)


@pytest.fixture
def stamp(demo: Demo, tmp_path: Path) -> Stamp:
    """Makes a query about a file of ours with `openssl ts -query` and these options, and sends it."""

    def stamp(*options: str) -> Stamped:
        (tmp_path / "contract.txt").write_text("ສັນຍາ\n", encoding="utf-8")
        stamped = Stamped(tmp_path, demo)
        stamped.openssl("-query", "-data", "contract.txt", *options, "-out", stamped.query)
        assert send(demo, stamped) == "200 application/timestamp-reply"
        return stamped

    return stamp


@pytest.mark.parametrize("algorithm", ["-sha256", "-sha384", "-sha512", "-sha3-256", "-sha3-384", "-sha3-512"])
@pytest.mark.parametrize("nonce", [[], ["-no_nonce"]], ids=["nonce", "no-nonce"])
def test_openssl_verifies_the_token(stamp: Stamp, algorithm: str, nonce: list[str]) -> None:
    """For every hash, with a nonce and without, the token verifies down from the root alone. TSA-T8, TSA-Q16."""
    stamped = stamp(algorithm, "-cert", *nonce)
    said = stamped.verify()
    assert "Verification: OK" in said, said


def test_the_token_says_when_by_what_policy_and_how_exactly(stamp: Stamp) -> None:
    """The fields are those of RFC 3161 §2.4.2, with milliseconds, and the time is now."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    text = stamp("-sha256", "-cert").text
    print(text)
    assert "Status: Granted." in text
    assert f"Policy OID: {POLICY}" in text or "Policy OID: 0.4.0.2023" in text
    assert "Accuracy: 0x01 seconds" in text
    assert "Ordering: no" in text
    told = re.search(r"Time stamp: (\w+ +\d+ \d\d:\d\d:\d\d)(\.\d{1,3})? (\d{4}) GMT", text)
    assert told, text
    at = datetime.strptime(f"{told[1]} {told[3]}", "%b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    assert before - timedelta(seconds=1) <= at <= datetime.now(UTC)


def test_without_certreq_no_certificate_travels(demo: Demo, stamp: Stamp, tmp_path: Path) -> None:
    """A client that did not ask for certificates gets none, and verifies with the ones that it has. TSA-T19, TSA-V2."""
    bare = stamp("-sha256")
    assert "Verification: FAILED" in bare.verify()
    at_hand = tmp_path / "at-hand.pem"
    at_hand.write_bytes((demo.pki / "tsu.pem").read_bytes() + (demo.pki / "tsa-chain.pem").read_bytes())
    said = bare.verify(untrusted=at_hand)
    assert "Verification: OK" in said, said
    size = bare.reply.stat().st_size
    assert size < stamp("-sha256", "-cert").reply.stat().st_size


def test_the_root_alone_is_enough_when_certificates_were_asked_for(demo: Demo, stamp: Stamp) -> None:
    """The token brings the unit's certificate and its CA's, so a verifier needs nothing but the root.

    TSA-T19, TSA-Q13.
    """
    stamped = stamp("-sha256", "-cert")
    said = stamped.openssl(
        "-verify", "-queryfile", stamped.query, "-in", stamped.reply, "-CAfile", demo.pki / "root.pem"
    )
    assert "Verification: OK" in said, said


def test_a_token_for_other_data_or_under_another_root_does_not_verify(stamp: Stamp, tmp_path: Path) -> None:
    """The checks above can fail: another query, another anchor."""
    stamped = stamp("-sha256", "-cert")
    assert "Verification: FAILED" in stamped.verify(root="gov/ca.pem")
    (tmp_path / "contract.txt").write_text("ສັນຍາອື່ນ\n", encoding="utf-8")
    stamped.openssl("-query", "-data", "contract.txt", "-sha256", "-cert", "-out", stamped.query)
    assert "Verification: FAILED" in stamped.verify()


def test_the_policy_that_was_asked_for(stamp: Stamp) -> None:
    """The one that is offered is granted when it is named. TSA-R5."""
    said = stamp("-sha256", "-cert", "-tspolicy", POLICY).verify()
    assert "Verification: OK" in said, said


@pytest.mark.parametrize(
    ("options", "fail_info"),
    [
        (["-sha256", "-tspolicy", OTHER_POLICY], "the requested TSA policy is not supported by the TSA"),
        (["-sha1"], "unrecognized or unsupported algorithm identifier"),
        (["-md5"], "unrecognized or unsupported algorithm identifier"),
    ],
)
def test_a_refusal_names_its_reason(stamp: Stamp, options: list[str], fail_info: str) -> None:
    """What is refused is refused in the protocol, so that OpenSSL can print why, and no token comes with it.

    TSA-R3, TSA-R5, TSA-R11.
    """
    text = stamp(*options).text
    print(text)
    assert "Status: Rejected." in text
    assert fail_info in text
    assert "TST info:\nNot included." in text


@pytest.mark.parametrize(
    ("cut", "fail_info"),
    [
        (lambda query: query[:-1], "the data submitted has the wrong format"),
        (lambda query: query + b"\x00", "the data submitted has the wrong format"),
        (lambda _: b"not ASN.1 at all" * 3, "the data submitted has the wrong format"),
        (lambda query: query.replace(b"\x02\x01\x01\x30", b"\x02\x01\x02\x30", 1), ""),
        (lambda _: b"", "the data submitted has the wrong format"),
    ],
    ids=["cut short", "trailing octet", "no DER", "version 2", "empty"],
)
def test_a_broken_query_is_refused_in_the_protocol(
    demo: Demo, stamp: Stamp, cut: Callable[[bytes], bytes], fail_info: str
) -> None:
    """Whatever arrives as a query, the reply is a TimeStampResp that OpenSSL can read. TSA-R1, TSA-R2, TSA-R11."""
    stamped = stamp("-sha256", "-cert")
    stamped.query.write_bytes(cut(stamped.query.read_bytes()))
    assert send(demo, stamped) == "200 application/timestamp-reply"
    text = stamped.text
    print(text)
    assert "Status: Rejected." in text
    assert fail_info in text


def test_every_token_has_a_serial_number_of_its_own(stamp: Stamp) -> None:
    """Twenty tokens, twenty serial numbers, and time does not go back."""
    texts = [stamp("-sha256").text for _ in range(20)]
    serials = [match[1] for text in texts if (match := re.search(r"Serial number: (0x[0-9A-F]+)", text))]
    assert len(set(serials)) == len(texts)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-H", "Content-Type:"], "200 application/timestamp-reply"),
        (["-H", "Content-Type: Application/Timestamp-Query; charset=utf-8"], "200 application/timestamp-reply"),
        (["-H", "Transfer-Encoding: chunked"], "200 application/timestamp-reply"),
        (["-H", "Expect: 100-continue"], "200 application/timestamp-reply"),
        (["--http1.0"], "200 application/timestamp-reply"),
        (["-X", "PUT"], "405 text/plain; charset=utf-8"),
    ],
)
def test_the_ways_in_which_clients_send(demo: Demo, stamp: Stamp, options: list[str], expected: str) -> None:
    """Media types are read liberally, bodies may be chunked, HTTP may be old; the reply is what the pickiest take.

    TSA-H2, TSA-Q18.
    """
    stamped = stamp("-sha256", "-cert")
    assert send(demo, stamped, *options) == expected
    if expected.startswith("200"):
        assert "Verification: OK" in stamped.verify()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_pyhanko_takes_the_token(demo: Demo) -> None:
    """PyHanko's client, the pickiest about media type, status and signer identifier, gets a token for its digest.

    TSA-Q10.
    """
    token = await HTTPTimeStamper(demo.urls["tsa"]).async_timestamp(sha256(b"pdf").digest(), "sha256")
    info = token["content"]["encap_content_info"]["content"].parsed
    assert info["message_imprint"]["hashed_message"].native == sha256(b"pdf").digest()
    assert abs(info["gen_time"].native - datetime.now(UTC)) < timedelta(minutes=1)
