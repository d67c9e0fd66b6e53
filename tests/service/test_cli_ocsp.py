"""`lakthan ocsp query` against the real responder, and against servers that refuse, lie, tamper or fall silent."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web
from asn1crypto import ocsp as asn1_ocsp
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import AuthorityInformationAccessOID

from lakthan.store.records import CRLReason
from lakthan_cli.__main__ import main
from support.pki import Issued, issue, new_ca, new_responder
from support.programs import need
from support.responder import ACTOR, Responder, request_for, running_responder, running_responder_of

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
OCSP_TYPE = "application/ocsp-response"


@pytest.fixture
async def responder(database_url: str, tmp_path: Path) -> AsyncIterator[Responder]:
    """A running responder with one authority."""
    async with running_responder(database_url, tmp_path) as running:
        yield running


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    """An HTTP server that answers everything with the handler; gives its URL."""
    runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def saying(body: bytes, status: int = 200, media_type: str = OCSP_TYPE) -> Handler:
    """A handler that always says the same."""

    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, status=status, content_type=media_type)

    return handler


def refusal(number: int) -> bytes:
    """An OCSPResponse with nothing but a status."""
    return bytes((0x30, 3, 0x0A, 1, number))


@dataclass(frozen=True)
class Asker:
    """The command, with a folder in which certificates are `NAME.pem` and the CA is `ca.pem`."""

    responder: Responder
    folder: Path

    async def announced(self, name: str, **options: Any) -> Issued:  # noqa: ANN401
        """A certificate that the responder knows, in a file."""
        certificate = await self.responder.issue(issue(name, self.responder.ca, **options))
        certificate.write(self.folder, name)
        return certificate

    async def __call__(self, *arguments: str) -> Result:
        """Run `lakthan ocsp query`; arguments that name files of the folder stand for their paths."""
        found = [str(self.folder / each) if each.endswith(".pem") else each for each in arguments]
        return await asyncio.to_thread(CliRunner().invoke, main, ["ocsp", "query", *found])

    async def json(self, *arguments: str) -> dict[str, Any]:
        """The only result in what `--json` prints."""
        document = json.loads((await self(*arguments, "--json")).stdout)
        [result] = document["results"]
        assert document["exit_code"] == result["exit_code"]
        found: dict[str, Any] = result
        return found


@pytest.fixture
async def ask(responder: Responder, tmp_path: Path) -> Asker:
    """The command beside the running responder."""
    folder = tmp_path / "files"
    folder.mkdir()
    responder.ca.write(folder, "ca")
    return Asker(responder, folder)


def outcomes(result: dict[str, Any]) -> dict[str, str]:
    """How the checks went, by name."""
    return {check["name"]: check["outcome"] for check in result["checks"]}


async def test_every_status_has_its_exit_code(ask: Asker) -> None:
    """0 good, 1 revoked, 2 unknown; and the table says since when and why."""
    await ask.announced("good")
    gone = await ask.announced("gone")
    when = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
    await ask.responder.writer.revoke(
        ask.responder.authority_id, gone.serial_number, reason=CRLReason.SUPERSEDED, revocation_time=when, actor=ACTOR
    )
    issue("stranger", ask.responder.ca).write(ask.folder, "stranger")
    for name, exit_code, words in (
        ("good.pem", 0, "good.pem: good"),
        ("gone.pem", 1, "gone.pem: revoked, since 2026-03-01T12:30:15Z, superseded"),
        ("stranger.pem", 2, "stranger.pem: unknown"),
    ):
        result = await ask(name, "--url", ask.responder.url, "--trust", "ca.pem")
        assert result.exit_code == exit_code, result.output
        assert words in result.output
        assert "failed" not in result.output
        assert "note" not in result.output


@pytest.mark.parametrize("method", ["--get", "--post"])
@pytest.mark.parametrize("nonce", ["--nonce", "--no-nonce"])
@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha384", "sha512"])
async def test_every_way_of_asking(ask: Asker, method: str, nonce: str, hash_name: str) -> None:
    """Methods, hash algorithms and nonces, in all combinations: the answer verifies without a single remark."""
    await ask.announced("good")
    result = await ask.json(
        *("good.pem", "--url", ask.responder.url, "--trust", "ca.pem", method, nonce, "--hash", hash_name)
    )
    assert result["verdict"] == "good"
    assert result["method"] == method.removeprefix("--").upper()
    assert set(outcomes(result).values()) == {"ok"}
    assert ("nonce" in outcomes(result)) is (nonce == "--nonce")


@pytest.mark.parametrize("kind", ["RSA-2048", "P-384", "Ed25519"])
async def test_every_key_of_a_responder(database_url: str, tmp_path: Path, kind: str) -> None:
    """Answers signed with other kinds of keys verify as well."""
    async with running_responder(database_url, tmp_path, kind=kind, ca_kind="P-384") as responder:
        folder = tmp_path / "files"
        folder.mkdir()
        responder.ca.write(folder, "ca")
        ask = Asker(responder, folder)
        await ask.announced("good")
        assert (await ask("good.pem", "--url", responder.url, "--trust", "ca.pem")).exit_code == 0


@pytest.mark.parametrize("form", ["DER", "PEM", "PKCS7"])
async def test_issuer_and_responder_are_found_through_the_certificate(ask: Asker, form: str) -> None:
    """With authorityInfoAccess nothing but the certificate is needed; behind caIssuers may be any usual form."""
    ca = ask.responder.ca.certificate
    body = {
        "DER": ca.public_bytes(Encoding.DER),
        "PEM": ca.public_bytes(Encoding.PEM),
        "PKCS7": pkcs7.serialize_certificates([new_ca("other").certificate, ca], Encoding.DER),
    }[form]
    (ask.folder / "ca.pem").unlink()
    async with server(saying(body, media_type="application/pkix-cert")) as publication:
        await ask.announced("good", extensions=(access([ask.responder.url], publication),))
        result = await ask.json("good.pem")
    assert (result["verdict"], result["issuer_from"], result["url"]) == ("good", publication, ask.responder.url)
    assert outcomes(result)["trust"] == "note"


async def test_the_issuer_is_found_beside_when_ca_issuers_fails(ask: Asker) -> None:
    """`ca.pem` or `chain.pem` in the same folder, or the rest of the same file, when its signature fits."""
    async with server(saying(b"gone", 404)) as publication:
        await ask.announced("good", extensions=(access([ask.responder.url], publication),))
        assert (await ask.json("good.pem"))["issuer_from"] == str(ask.folder / "ca.pem")
        chain = new_ca("other").certificate.public_bytes(Encoding.PEM) + (ask.folder / "ca.pem").read_bytes()
        (ask.folder / "ca.pem").rename(ask.folder / "chain.pem")
        (ask.folder / "chain.pem").write_bytes(chain)
        assert (await ask.json("good.pem"))["issuer_from"] == str(ask.folder / "chain.pem")
        (ask.folder / "chain.pem").unlink()
        result = await ask.json("good.pem")
        assert (result["verdict"], result["exit_code"]) == ("no answer", 4)
        assert "give it with --issuer" in result["problem"]
        assert "404 Not Found" in result["problem"]
        with (ask.folder / "good.pem").open("ab") as file:
            file.write(chain)
        assert (await ask.json("good.pem"))["issuer_from"] == str(ask.folder / "good.pem")


async def test_responders_are_tried_in_order(ask: Asker) -> None:
    """One that does not answer, one that refuses and one that lies are passed over, and all of them are named."""
    nowhere = "http://127.0.0.1:9"
    async with server(saying(refusal(3))) as busy, server(saying(b"hello")) as babbling:
        urls = [nowhere, "ldap://127.0.0.1/", busy, babbling, ask.responder.url]
        await ask.announced("good", extensions=(access(urls, None),))
        result = await ask.json("good.pem")
    assert (result["verdict"], result["url"]) == ("good", ask.responder.url)
    assert [each["url"] for each in result["attempts"]] == urls[:-1]
    for each, words in zip(
        result["attempts"], ["Connection refused", "only http", "tryLater", "not an OCSPResponse"], strict=True
    ):
        assert words in each["problem"]


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (saying(refusal(1)), "says malformedRequest"),
        (saying(refusal(2), 500), "says internalError"),
        (saying(refusal(3)), "says tryLater"),
        (saying(refusal(4)), "says status 4"),
        (saying(refusal(5)), "says sigRequired"),
        (saying(refusal(6)), "says unauthorized; some responders know their issuers only by SHA-1"),
        (saying(b"<html>", 404), "the server says 404 Not Found"),
        (saying(b"<html>", 200, "text/html"), "not an OCSPResponse"),
        (saying(b""), "not an OCSPResponse"),
        (saying(b"\x30" * 2_000_000), "more than 1048576 octets"),
    ],
)
async def test_no_answer_is_exit_code_4_and_says_why(ask: Asker, handler: Handler, words: str) -> None:
    """The protocol's refusals, and whatever is no OCSP at all."""
    await ask.announced("good")
    async with server(handler) as url:
        result = await ask("good.pem", "--url", url)
    assert result.exit_code == 4, result.output
    assert words in result.output
    assert "good.pem: no answer" in result.output


async def test_silence_ends_at_the_deadline(ask: Asker) -> None:
    """A server that takes the request and says nothing, or drips its answer, does not hold the command up."""
    forever = asyncio.Event()

    async def drip(http_request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http_request)
        await response.write(b"\x30")
        await forever.wait()
        return response

    async def silent(_: web.BaseRequest) -> web.StreamResponse:
        await forever.wait()
        return web.Response()

    await ask.announced("good")
    for handler in (silent, drip):
        async with server(handler) as url:
            result = await ask("good.pem", "--url", url, "--timeout", "0.3")
        assert result.exit_code == 4
        assert "no answer within 0.3 s" in result.output


async def test_redirects_are_not_followed(ask: Asker) -> None:
    """A responder that sends elsewhere is named with where it sends; the user decides."""

    async def elsewhere(_: web.BaseRequest) -> web.Response:
        return web.Response(status=302, headers={"Location": ask.responder.url})

    await ask.announced("good")
    async with server(elsewhere) as url:
        result = await ask("good.pem", "--url", url)
    assert result.exit_code == 4
    assert f"it sends elsewhere, to {ask.responder.url}" in result.output


@asynccontextmanager
async def tampering(
    responder: Responder,
    *,
    request: Callable[[bytes], bytes] = bytes,
    answer: Callable[[bytes], bytes] = bytes,
    media_type: str = OCSP_TYPE,
) -> AsyncIterator[str]:
    """Somebody between the command and the responder, who changes requests or answers; gives the URL."""

    async def handler(http_request: web.BaseRequest) -> web.Response:
        if http_request.method == "GET":
            asked = base64.b64decode(unquote(http_request.raw_path.lstrip("/")))
        else:
            asked = await http_request.read()
        reply = await responder.post(request(asked))
        return web.Response(body=answer(reply.body), content_type=media_type)

    async with server(handler) as url:
        yield url


def flip_signature(answer: bytes) -> bytes:
    """One bit of the signature turned."""
    signature = bytes(asn1_ocsp.OCSPResponse.load(answer).basic_ocsp_response["signature"])
    at = answer.index(signature) + len(signature) - 1
    return answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]


async def test_tampered_answers_do_not_verify(ask: Asker) -> None:
    """A turned bit, an answer about another certificate, a lost or foreign nonce: each fails its own check."""
    good = await ask.announced("good")
    other = await ask.announced("other")
    ca, responder = ask.responder.ca, ask.responder
    anothers_nonce = request_for(good, ca, nonce=bytes(32))
    about_another = request_for(other, ca)
    without = request_for(good, ca)
    for tampered, options, expected in (
        (tampering(responder, answer=flip_signature), (), {"signature"}),
        (tampering(responder, request=lambda _: anothers_nonce), (), {"nonce"}),
        (tampering(responder, request=lambda _: about_another), ("--no-nonce",), {"cert_id"}),
        (tampering(responder, request=lambda _: without), ("--require-nonce",), {"nonce"}),
    ):
        async with tampered as url:
            result = await ask.json("good.pem", "--url", url, *options)
        assert (result["verdict"], result["exit_code"]) == ("not verified", 4)
        assert {name for name, outcome in outcomes(result).items() if outcome == "failed"} == expected


async def test_what_is_odd_but_no_deceit_is_a_note(ask: Asker) -> None:
    """A nonce that does not come back and a wrong media type are said, and the answer counts."""
    good = await ask.announced("good")
    without = request_for(good, ask.responder.ca)
    async with tampering(ask.responder, request=lambda _: without, media_type="text/plain") as url:
        result = await ask.json("good.pem", "--url", url, "--trust", "ca.pem")
    assert result["verdict"] == "good"
    assert {name for name, outcome in outcomes(result).items() if outcome == "note"} == {"nonce", "media_type"}


async def test_a_get_is_one_escaped_path(ask: Asker) -> None:
    """A GET reaches the responder with all of its base64 (RFC 9919 §6)."""
    await ask.announced("good")
    async with tampering(ask.responder) as url:
        assert (await ask("good.pem", "--url", url + "/", "--get")).exit_code == 0


async def test_the_verdict_is_for_the_time_of_at(ask: Asker) -> None:
    """Five days from now the answer of now is stale; yesterday it did not exist, nor did the certificates."""
    await ask.announced("good")
    later = datetime.now(UTC) + timedelta(days=5)
    result = await ask.json("good.pem", "--url", ask.responder.url, "--at", later.isoformat())
    assert {name for name, outcome in outcomes(result).items() if outcome == "failed"} == {"next_update"}
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    result = await ask.json("good.pem", "--url", ask.responder.url, "--at", yesterday)
    failed = {name for name, outcome in outcomes(result).items() if outcome == "failed"}
    assert failed == {"issuer", "responder_validity", "produced_at", "this_update"}


async def test_the_responder_of_another_ca(database_url: str, tmp_path: Path) -> None:
    """An answer by a key that the issuer never made a responder is refused."""
    # The service itself refuses to start so; so the answers of an honest one are put before another CA's certificate.
    ca = new_ca("the real CA")
    namesake = new_ca("the real CA")
    async with running_responder_of(database_url, tmp_path, namesake, new_responder(namesake)) as responder:
        folder = tmp_path / "files"
        folder.mkdir()
        ca.write(folder, "ca")
        subject = issue("subject", ca)
        subject.write(folder, "subject")
        twin = await responder.issue(issue("subject", namesake, serial_number=subject.certificate.serial_number))
        request = request_for(twin, namesake)
        async with tampering(responder, request=lambda _: request) as url:
            result = await Asker(responder, folder).json("subject.pem", "--url", url, "--no-nonce")
    failed = {name for name, outcome in outcomes(result).items() if outcome == "failed"}
    assert failed == {"cert_id", "delegation"}
    assert result["exit_code"] == 4


async def test_trust(ask: Asker) -> None:
    """An issuer that does not lead to what the user trusts makes the answer worthless."""
    await ask.announced("good")
    new_ca("somebody").write(ask.folder, "stranger")
    result = await ask.json("good.pem", "--url", ask.responder.url, "--trust", "stranger.pem")
    assert result["verdict"] == "not verified"
    assert outcomes(result)["trust"] == "failed"


async def test_several_certificates(ask: Asker) -> None:
    """A line for each, and the gravest exit code: trouble before revoked before unknown before good."""
    for name in ("one", "two"):
        await ask.announced(name)
    gone = await ask.announced("gone")
    await ask.responder.writer.revoke(
        ask.responder.authority_id, gone.serial_number, reason=CRLReason.KEY_COMPROMISE, actor=ACTOR
    )
    issue("stranger", ask.responder.ca).write(ask.folder, "stranger")
    issue("orphan", new_ca("nobody")).write(ask.folder, "orphan")
    url = ("--url", ask.responder.url)
    for names, exit_code in (
        (("one.pem", "two.pem"), 0),
        (("one.pem", "stranger.pem"), 2),
        (("stranger.pem", "gone.pem", "one.pem"), 1),
        (("gone.pem", "orphan.pem"), 3),
    ):
        result = await ask(*names, *url)
        assert result.exit_code == exit_code, result.output
        assert [Path(line.split()[0]).name for line in result.stdout.splitlines()] == list(names)
    saved = ask.folder / "saved"
    document = json.loads((await ask("one.pem", "gone.pem", *url, "--save", str(saved), "--json")).stdout)
    assert [each["verdict"] for each in document["results"]] == ["good", "revoked"]
    assert sorted(path.name for path in saved.iterdir()) == ["001-one.ocsp", "002-gone.ocsp"]


async def test_a_kept_answer_is_what_openssl_reads(ask: Asker) -> None:
    """`--save` keeps the answer as it came: OpenSSL and `lakthan ocsp verify` say the same about the file."""
    openssl = need("openssl")
    await ask.announced("good")
    kept = ask.folder / "good.ocsp"
    result = await ask("good.pem", "--url", ask.responder.url, "--save", str(kept))
    assert result.exit_code == 0, result.output

    def judges() -> tuple[str, int]:
        command: list[str | Path] = [
            *(openssl, "ocsp", "-sha256", "-issuer", "ca.pem", "-cert", "good.pem", "-respin", str(kept)),
            *("-CAfile", "ca.pem", "-no_nonce"),
        ]
        done = subprocess.run(
            command,
            cwd=ask.folder,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        files = ["--cert", str(ask.folder / "good.pem"), "--trust", str(ask.folder / "ca.pem")]
        return done.stdout, CliRunner().invoke(main, ["ocsp", "verify", str(kept), *files]).exit_code

    said, exit_code = await asyncio.to_thread(judges)
    assert "Response verify OK" in said
    assert "good.pem: good" in said
    assert exit_code == 0

    kept.write_bytes(flip_signature(kept.read_bytes()))
    said, exit_code = await asyncio.to_thread(judges)
    assert "Response Verify Failure" in said
    assert exit_code == 4


async def test_a_place_where_nothing_can_be_kept(ask: Asker) -> None:
    """`--save` into a folder that is not there is the user's mistake, and said."""
    await ask.announced("good")
    result = await ask("good.pem", "--url", ask.responder.url, "--save", str(ask.folder / "no" / "such" / "folder"))
    assert result.exit_code == 3
    assert "cannot be kept" in result.stderr


def access(ocsp_urls: list[str], ca_issuers_url: str | None) -> tuple[x509.AuthorityInformationAccess, bool]:
    """An authorityInfoAccess extension."""
    described = [(AuthorityInformationAccessOID.OCSP, url) for url in ocsp_urls]
    if ca_issuers_url is not None:
        described.append((AuthorityInformationAccessOID.CA_ISSUERS, ca_issuers_url))
    descriptions = [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in described]
    return x509.AuthorityInformationAccess(descriptions), False
