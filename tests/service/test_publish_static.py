"""`lakthan publish --static`: the folder follows the store."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp

from lakthan.store.answer_files import AnswerReader
from lakthan.store.presigned import Presigned as Changes
from lakthan.store.records import CRLReason
from lakthan.store.status import AuthorityReader
from lakthan_cli.__main__ import main
from lakthan_ocsp.publisher.static import Folder, StaticAnswers
from support.database import OpenPool
from support.pki import Issued
from support.presigning import AUTHORITY, Presigned, presigning
from support.responder import request_for


@pytest.fixture
async def presigned(database_url: str, tmp_path: Path) -> AsyncIterator[Presigned]:
    """A CA whose answers are signed ahead."""
    async with presigning(database_url, tmp_path) as served:
        yield served


@pytest.fixture
async def answers(presigned: Presigned, open_as: OpenPool, tmp_path: Path) -> AsyncIterator[StaticAnswers]:
    """The folder `static`, with the rights of a responder, while it is followed."""
    pool = await open_as("lakthan_responder")
    (tmp_path / "static").mkdir()
    made = StaticAnswers(Folder(tmp_path / "static"), AuthorityReader(pool), AnswerReader(pool), Changes(pool))
    await made.load()
    await made.everything()
    stop = asyncio.Event()
    following = asyncio.create_task(made.follow(2.0, stop))
    yield made
    stop.set()
    await following


def file_of(presigned: Presigned, folder: Path, certificate: Issued, algorithm: hashes.HashAlgorithm) -> Path:
    """Where the answer belongs."""
    request = request_for(certificate, presigned.responder.ca, algorithm=algorithm)
    return folder / "static" / base64.b64encode(request).decode()


async def until(said: Callable[[], bool]) -> None:
    """Wait until that is true."""
    async with asyncio.timeout(20):
        while not said():  # noqa: ASYNC110 - the file system does not tell
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("answers")
async def test_the_folder_follows(presigned: Presigned, tmp_path: Path) -> None:
    """A new certificate has its files, a change replaces them, and their time is thisUpdate."""
    certificate = await presigned.issue()
    files = [file_of(presigned, tmp_path, certificate, each) for each in (hashes.SHA1(), hashes.SHA256())]
    await until(lambda: all(file.is_file() for file in files))
    for file in files:
        response = ocsp.load_der_ocsp_response(file.read_bytes())
        assert response.certificate_status is ocsp.OCSPCertStatus.GOOD
        assert datetime.fromtimestamp(file.stat().st_mtime, UTC) == response.this_update_utc
        assert file.stat().st_mode & 0o777 == 0o644
    await presigned.responder.writer.revoke(
        presigned.authority_id, certificate.serial_number, reason=CRLReason.KEY_COMPROMISE, actor="test"
    )

    def revoked() -> bool:
        there = [file.read_bytes() for file in files if file.is_file()]
        said = [ocsp.load_der_ocsp_response(each).certificate_status for each in there]
        return said == [ocsp.OCSPCertStatus.REVOKED] * 2

    await until(revoked)


@pytest.mark.usefixtures("answers")
async def test_an_outdated_file_goes_although_there_is_no_new_one(presigned: Presigned, tmp_path: Path) -> None:
    """Without a publisher a revoked certificate has no file, rather than one that says good."""
    certificate = await presigned.issue()
    files = [file_of(presigned, tmp_path, certificate, each) for each in (hashes.SHA1(), hashes.SHA256())]
    await until(lambda: all(file.is_file() for file in files))
    await presigned.stop_publishing()
    await presigned.responder.writer.revoke(presigned.authority_id, certificate.serial_number, actor="test")
    await until(lambda: not any(file.exists() for file in files))


@pytest.mark.usefixtures("answers")
async def test_whoever_damages_a_file(presigned: Presigned, tmp_path: Path) -> None:
    """A file that was cut, removed, or belongs to no answer is put right when everything is compared."""
    certificate, other = await presigned.issue(), await presigned.issue("other")
    cut = file_of(presigned, tmp_path, certificate, hashes.SHA1())
    gone = file_of(presigned, tmp_path, certificate, hashes.SHA256())
    await until(lambda: cut.is_file() and gone.is_file())
    whole, strange = cut.read_bytes(), file_of(presigned, tmp_path, other, hashes.SHA384())
    strange.parent.mkdir(parents=True, exist_ok=True)
    strange.write_bytes(b"no answer is published for this hash")
    cut.write_bytes(whole[:100])
    os.utime(cut, (cut.stat().st_mtime - 5,) * 2)
    gone.unlink()
    await until(lambda: cut.read_bytes() == whole and gone.is_file() and not strange.exists())


async def test_an_expired_answer_goes(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """What holds no more is no file either, once nobody signs anew."""
    span = timedelta(seconds=4)
    async with presigning(database_url, tmp_path, refresh=span / 2, validity=span) as presigned:
        certificate = await presigned.issue()
        await presigned.until_rows(2)
        await presigned.stop_publishing()
        pool = await open_as("lakthan_responder")
        (tmp_path / "static").mkdir()
        made = StaticAnswers(Folder(tmp_path / "static"), AuthorityReader(pool), AnswerReader(pool), Changes(pool))
        await made.load()
        await made.everything()
        file = file_of(presigned, tmp_path, certificate, hashes.SHA1())
        assert file.is_file()
        async with asyncio.timeout(20):
            while file.exists():
                await made.everything()
                await asyncio.sleep(0.05)
        assert not list((tmp_path / "static").iterdir())  # nor the folders that it was in


async def test_the_command(presigned: Presigned, tmp_path: Path) -> None:
    """It writes, says what it did, and refuses an authority that is not there."""
    await presigned.issue()
    await presigned.until_rows(2)
    command = ["publish", "--static", str(tmp_path / "out"), "--database", presigned.config.database.url]
    for more, expected in (
        (["--authority", AUTHORITY], "2 answers written, 0 removed, 0 as they were"),
        ([], "0 answers written, 0 removed, 2 as they were"),
    ):
        result = await asyncio.to_thread(CliRunner().invoke, main, [*command, *more])
        assert expected in result.output
        assert result.exit_code == 0
    result = await asyncio.to_thread(CliRunner().invoke, main, [*command, "--authority", "nobody"])
    assert "there is no authority nobody" in result.output
    assert result.exit_code == 1
    (tmp_path / "file").write_text("in the way")
    command[2] = str(tmp_path / "file" / "below")
    result = await asyncio.to_thread(CliRunner().invoke, main, command)
    assert "cannot be written" in result.output
    assert result.exit_code == 1
