"""Rules of the time-stamp authority that show over HTTP alone: exactly these headers, and nothing of who asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lakthan.config import TSAProfileConfig
from support.tsa import failure, new_unit, request_for, running_tsa, tst_info_of

HEADERS = {"Content-Type", "Content-Length", "Cache-Control", "Date", "Server"}
NAME, SECRET = "hospital-of-luang-prabang", "s3cret-of-the-hospital"


@pytest.mark.parametrize("body", [request_for(cert_req=True), b"garbage"], ids=["granted", "refused"])
async def test_no_header_that_a_client_stumbles_over(database_url: str, tmp_path: Path, body: bytes) -> None:
    """Granted or refused: status 200, the media type in small letters without parameters, the length, no transfer
    coding of any kind, no redirect, and no header that is not needed.

    TSA-H1, TSA-H3, TSA-Q9, TSA-Q11, TSA-V5, TSA-V6, TSA-V7, TSA-V8, TSA-V9, TSA-V10, TSA-V11, TSA-V13.
    """
    async with running_tsa(database_url, tmp_path, new_unit()) as authority:
        for path in ("", "tsa/default"):
            reply = await authority.post(body, path=path)
            assert reply.http_status == 200
            assert set(reply.headers) == HEADERS
            assert reply.headers["Content-Type"] == "application/timestamp-reply"
            assert reply.headers["Content-Length"] == str(len(reply.body))
            assert reply.body.startswith(b"\x30")


async def test_nothing_of_who_asked(database_url: str, tmp_path: Path) -> None:
    """A client that says who it is gets a token without its name, its secret or its address in it; a stranger's token
    under the same unit says the same but for serial number and time.

    TSA-T13.
    """
    credentials = tmp_path / "clients.toml"
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    credentials.write_text(f'[{NAME}]\nsecret_sha256 = ["{digest}"]\nprofiles = ["closed"]\n')
    profiles = {
        "default": TSAProfileConfig(["main"]),
        "closed": TSAProfileConfig(["main"], authentication="required"),
    }
    unit = new_unit()
    async with running_tsa(database_url, tmp_path, unit, profiles=profiles, credentials=credentials) as authority:
        known = await authority.post(
            request_for(nonce=7), path="tsa/closed", Authorization=f"Bearer {SECRET}", From=f"{NAME}@example.la"
        )
        stranger = await authority.post(request_for(nonce=7))
    for word in (NAME, SECRET, digest, "127.0.0.1"):
        assert word.encode() not in known.body
    said, said_to_stranger = (
        {
            name: value
            for name, value in tst_info_of(reply.body).native.items()
            if name not in ("serial_number", "gen_time")
        }
        for reply in (known, stranger)
    )
    assert said == said_to_stranger


async def test_an_imprint_is_only_measured(database_url: str, tmp_path: Path) -> None:
    """Whatever the hash is, of zeros, of nothing, of ones: it is stamped; one octet more or less, and it is not.

    TSA-T13, TSA-R4.
    """
    async with running_tsa(database_url, tmp_path, new_unit()) as authority:
        for hashed in (bytes(32), hashlib.sha256(b"").digest(), b"\xff" * 32):
            reply = await authority.post(request_for(hashed))
            assert tst_info_of(reply.body)["message_imprint"]["hashed_message"].native == hashed
        for size in (0, 31, 33):
            assert failure((await authority.post(request_for(bytes(size)))).body)[0] == {"bad_data_format"}
