"""OpenSSL is the judge: it verifies our tokens, and shows our refusals to its user."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lakthan_tsa.authority import TokenTemplate, draft
from lakthan_tsa.syntax import PKIFailureInfo, Rejection, granted, parse_request, refusal
from support.programs import need
from support.tsa import HASH_NAMES, POLICY, Unit, new_unit

DATA = "ຫຼັກຖານ".encode()


def openssl(folder: Path, *arguments: str) -> str:
    """Run `openssl ts`; gives what it printed, and asserts that it is content."""
    done = subprocess.run(
        [need("openssl"), "ts", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def stamp(folder: Path, unit: Unit, *query: str, data: bytes = DATA) -> None:
    """Let OpenSSL ask for a token (req.tsq), and answer it (resp.tsr)."""
    unit.write(folder)
    (folder / "data").write_bytes(data)
    openssl(folder, "-query", "-data", "data", "-out", "req.tsq", *query)
    identity = unit.identity()
    template = TokenTemplate(identity, policy=POLICY, accuracy=timedelta(milliseconds=1500))
    request = parse_request((folder / "req.tsq").read_bytes(), offered_policies=frozenset({template.policy}))
    made = draft(request, template, serial_number=b"\x41" + bytes(range(15)), gen_time=datetime.now(UTC))
    (folder / "resp.tsr").write_bytes(granted(made.seal(await identity.signer.sign(made.tbs))))


def verify(folder: Path, *more: str) -> str:
    """The verdict of OpenSSL on resp.tsr."""
    return openssl(folder, "-verify", "-in", "resp.tsr", "-CAfile", "root.pem", *more)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096"])
async def test_every_key(tmp_path: Path, kind: str) -> None:
    """A token of every kind of key verifies against request and data, with the chain that it carries. TSA-Q16."""
    await stamp(tmp_path, new_unit(kind), "-sha256", "-cert")
    assert "Verification: OK" in verify(tmp_path, "-queryfile", "req.tsq")
    assert "Verification: OK" in verify(tmp_path, "-data", "data")


@pytest.mark.parametrize("hash_name", HASH_NAMES)
async def test_every_hash(tmp_path: Path, hash_name: str) -> None:
    """Imprints of SHA-2 and SHA-3 are stamped, as OpenSSL writes them."""
    await stamp(tmp_path, new_unit(), "-" + hash_name.replace("_", "-"), "-cert")
    assert "Verification: OK" in verify(tmp_path, "-queryfile", "req.tsq")


@pytest.mark.parametrize("more", [(), ("-no_nonce",), ("-tspolicy", POLICY), ("-no_nonce", "-tspolicy", POLICY)])
@pytest.mark.parametrize("cert", [True, False])
async def test_every_shape(tmp_path: Path, more: tuple[str, ...], *, cert: bool) -> None:
    """With and without nonce, policy and certificates; when the token carries none the verifier brings them.

    TSA-T8, TSA-T19.
    """
    await stamp(tmp_path, new_unit(), "-sha384", *more, *(["-cert"] if cert else []))
    untrusted = tmp_path / "untrusted.pem"
    untrusted.write_bytes((tmp_path / "tsu.pem").read_bytes() + (tmp_path / "chain.pem").read_bytes())
    brought = [] if cert else ["-untrusted", "untrusted.pem"]
    assert "Verification: OK" in verify(tmp_path, "-queryfile", "req.tsq", *brought)


async def test_the_text(tmp_path: Path) -> None:
    """OpenSSL reads every field of the response as it is meant."""
    await stamp(tmp_path, new_unit(), "-sha512", "-cert")
    text = openssl(tmp_path, "-reply", "-in", "resp.tsr", "-text")
    for line in (
        "Status: Granted.",
        "Status description: unspecified",
        "Failure info: unspecified",
        f"Policy OID: {POLICY}",
        "Hash Algorithm: sha512",
        "Serial number: 0x41000102030405060708090A0B0C0D0E",
        "Accuracy: 0x01 seconds, 0x01F4 millis, unspecified micros",
        "Ordering: no",
        "TSA: unspecified",
    ):
        assert line in text


async def test_wrong_data(tmp_path: Path) -> None:
    """A token for other data does not verify, so the verdicts above mean something."""
    await stamp(tmp_path, new_unit(), "-sha256", "-cert")
    (tmp_path / "other").write_bytes(b"forged")
    with pytest.raises(AssertionError, match="message imprint mismatch"):
        verify(tmp_path, "-data", "other")


@pytest.mark.parametrize(
    ("fail_info", "shown"),
    [
        (PKIFailureInfo.BAD_ALG, "unrecognized or unsupported algorithm identifier"),
        (PKIFailureInfo.BAD_REQUEST, "transaction not permitted or supported"),
        (PKIFailureInfo.BAD_DATA_FORMAT, "the data submitted has the wrong format"),
        (PKIFailureInfo.TIME_NOT_AVAILABLE, "the TSA's time source is not available"),
        (PKIFailureInfo.UNACCEPTED_POLICY, "the requested TSA policy is not supported by the TSA"),
        (PKIFailureInfo.UNACCEPTED_EXTENSION, "the requested extension is not supported by the TSA"),
        (PKIFailureInfo.ADD_INFO_NOT_AVAILABLE, "the additional information requested could not be understood"),
        (PKIFailureInfo.SYSTEM_FAILURE, "the request cannot be handled due to system failure"),
    ],
)
def test_refusals(tmp_path: Path, fail_info: PKIFailureInfo, shown: str) -> None:
    """Each refusal is shown as one, with its reason and with our text. TSA-R11."""
    (tmp_path / "resp.tsr").write_bytes(refusal(Rejection(fail_info, "ask again")))
    text = openssl(tmp_path, "-reply", "-in", "resp.tsr", "-text")
    assert "Status: Rejected." in text
    assert "Status description: ask again" in text
    assert text.count(shown) == 1
    assert "TST info:\nNot included." in text
