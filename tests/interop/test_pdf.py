"""The real user's job: a PDF is signed as PAdES B-LTA with time-stamps and OCSP answers of the demo, and is valid when
the signer's certificate is not any more.

Days pass by libfaketime: demo and validator both run with their clocks set forward, so that the validator asks a
responder of its own time, and the signer's certificate (valid for two days) has really expired for everybody.
"""

# pyHanko is typed in parts only.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pyhanko.keys import load_cert_from_pemder
from pyhanko.pdf_utils.reader import PdfFileReader
from pyhanko.sign.general import SigningError

from interop.pades import PASSED, Signatory, evidence, validate
from support.demo import Demo, environment, on_free_ports, running
from support.programs import need

pytestmark = [
    pytest.mark.timeout(300),
    # aiohttp's own deprecations, in pyHanko's clients.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
AUTHORITIES = {"public": ".", "gov": "gov"}


@dataclass(frozen=True)
class Archive:
    """Signed PDFs in `folder`, named by authority and what they are, and the root that validators trust."""

    folder: Path
    root: Path

    def verdicts(self, variables: dict[str, str]) -> dict[str, list[str]]:
        """What pyHanko thinks of each PDF, in a process of its own with these environment variables: the indication
        and the time of the document time-stamp, by file name. Its words are printed.
        """
        done = subprocess.run(
            [sys.executable, "-m", "interop.pades", self.root, *sorted(self.folder.glob("*.pdf"))],
            cwd=Path(__file__).parents[1],
            env=environment() | variables,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        print(done.stderr)
        assert done.returncode == 0, done.stderr
        verdicts: dict[str, list[str]] = json.loads(done.stdout)
        return verdicts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one demo that is started several times."""
    return tmp_path_factory.mktemp("pdf")


@pytest.fixture(scope="module")
def today(home: Path) -> Iterator[Demo]:
    """The demo at the time of signing."""
    with running(home / "demo", *on_free_ports()) as demo:
        yield demo


@pytest.fixture(scope="module")
def archive(home: Path, today: Demo) -> Archive:
    """For each CA: a plain signature, one with all that an archive needs, and that one with the additions cut off."""
    folder = home / "archive"
    folder.mkdir()
    for authority in AUTHORITIES:
        who = signatory(today, authority)
        (folder / f"{authority}-plain.pdf").write_bytes(asyncio.run(who.sign("B-B")))
        complete = asyncio.run(who.sign("B-LTA"))
        (folder / f"{authority}-archive.pdf").write_bytes(complete)
        (folder / f"{authority}-cut.pdf").write_bytes(first_revision(complete))
    return Archive(folder, today.pki / "root.pem")


def signatory(demo: Demo, authority: str) -> Signatory:
    """The document signer of one of the two CAs."""
    root = load_cert_from_pemder(str(demo.pki / "root.pem"))
    return Signatory(demo.pki / AUTHORITIES[authority], root, demo.urls["tsa"])


def days_later(days: int) -> dict[str, str]:
    """The environment of a process whose clock is set forward."""
    printed = subprocess.run(
        [need("faketime"), "-f", f"+{days}d", "env"], check=True, capture_output=True, text=True
    ).stdout
    variables = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    return {name: variables[name] for name in ("LD_PRELOAD", "FAKETIME")}


@pytest.mark.parametrize("authority", AUTHORITIES)
def test_the_archive_signature_carries_its_evidence(archive: Archive, authority: str) -> None:
    """The status of the signer, of both CAs and of the time-stamping unit is embedded, all of it by OCSP."""
    ocsp_responses, crls, certificates = evidence((archive.folder / f"{authority}-archive.pdf").read_bytes())
    print(f"{ocsp_responses} OCSP responses, {crls} CRLs, {certificates} certificates")
    assert (ocsp_responses, crls) == (4, 0)


def test_the_archive_signature_is_valid_on_the_day_of_signing(archive: Archive) -> None:
    """It is accepted at once; a mere signature, without any proof of its time, is not enough even today. TSA-Q10."""
    verdicts = archive.verdicts({})
    print("today:", verdicts)
    for authority in AUTHORITIES:
        assert verdicts[f"{authority}-archive.pdf"][0] == PASSED
        assert verdicts[f"{authority}-plain.pdf"][0] != PASSED


def test_pdfsig_reads_the_signature(archive: Archive) -> None:
    """A reader that shares no code with the signer finds the signature valid and the signer's Lao name in it."""
    for authority, name in (("public", "ສົມສັກ"), ("gov", "ບຸນມີ")):
        done = subprocess.run(
            [need("pdfsig"), "-nocert", archive.folder / f"{authority}-archive.pdf"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        print(done.stdout)
        assert "Signature Validation: Signature is Valid." in done.stdout, done.stderr
        assert "Signature Type: ETSI.CAdES.detached" in done.stdout
        assert name in done.stdout


def test_who_was_revoked_before_signing_is_refused(today: Demo, archive: Archive) -> None:
    """A signer whose certificate is revoked cannot make an archive signature, and the one that is made without asking
    is refused by every validator that asks. What was signed before stays valid.
    """
    who = signatory(today, "gov")
    time.sleep(1.1)  # revocation times have whole seconds: it must be a later one than that of the signatures
    assert today.lakthan("revoke", today.pki / "gov/pdf.pem", "--reason", "keyCompromise").returncode == 0
    with pytest.raises(SigningError) as refused:
        asyncio.run(who.sign("B-LTA"))
    assert "revoked" in str(refused.value.__cause__)
    late = asyncio.run(validate(asyncio.run(who.sign("B-T")), who.root))
    early = asyncio.run(validate((archive.folder / "gov-archive.pdf").read_bytes(), who.root))
    print(late.text, early.text, sep="\n")
    assert late.indication != PASSED
    assert "The signer's certificate is revoked." in late.text
    assert early.indication == PASSED


@pytest.mark.parametrize("days", [3, 60])
def test_after_the_signers_certificate_has_expired_only_the_archive_signature_is_valid(
    home: Path, today: Demo, archive: Archive, days: int
) -> None:
    """Three days later, and again when the responders have new certificates and the embedded answers are long out of
    date, pyHanko with nothing but the root accepts the archive signatures of both CAs, and none of the others.
    """
    if today.process.poll() is None:
        assert today.stop() == 0
    clock = days_later(days)
    with running(home / "demo", variables=clock) as demo:
        assert demo.urls["ocsp"] == today.urls["ocsp"]  # the certificates name it
        verdicts = archive.verdicts(clock)
    print(days, "days later:", verdicts)
    for authority in AUTHORITIES:
        indication, archived_at = verdicts[f"{authority}-archive.pdf"]
        assert indication == PASSED
        assert abs(datetime.now(UTC) - datetime.fromisoformat(archived_at)) < timedelta(hours=1)
        assert verdicts[f"{authority}-cut.pdf"][0] != PASSED
        assert verdicts[f"{authority}-plain.pdf"][0] != PASSED


def first_revision(pdf: bytes) -> bytes:
    """A PDF as it was when it was signed: without what was added behind the signature."""
    [_, _, start, length] = PdfFileReader(BytesIO(pdf)).embedded_regular_signatures[0].byte_range
    return pdf[: int(start) + int(length)]
