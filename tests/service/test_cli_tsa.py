"""`lakthan tsa` against the real authority, against servers that refuse, lie or are busy, and beside `openssl ts`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan_cli.__main__ import main
from lakthan_cli.tsa import imprint
from support.pki import Issued, new_ca
from support.programs import need
from support.tsa import UNIT_EXTENSIONS, Authority, new_unit, request_for, running_tsa

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
REPLY_TYPE = "application/timestamp-reply"
POLICY = "0.4.0.2023.1.1"
TEXT = "ສັນຍາ\n"


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


def saying(body: bytes, status: int = 200, media_type: str = REPLY_TYPE) -> Handler:
    """A handler that always says the same."""

    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, status=status, content_type=media_type)

    return handler


async def lakthan(*arguments: str | Path) -> Result:
    """Run the command in another thread, so that servers of the test can answer."""
    return await asyncio.to_thread(CliRunner().invoke, main, ["tsa", *map(str, arguments)])


@dataclass(frozen=True)
class Client:
    """The command in a folder of its own, with a document in it, and an authority to ask."""

    authority: Authority
    folder: Path

    @property
    def document(self) -> Path:
        """What is to be stamped."""
        return self.folder / "ສັນຍາ.txt"

    @property
    def trust(self) -> Path:
        """The root of the authority's unit."""
        return self.authority.folder / "root.pem"

    async def request(self, *arguments: str | Path, url: str | None = None) -> Result:
        """`lakthan tsa request`."""
        return await lakthan("request", *arguments, "--url", url or self.authority.url)

    async def verify(self, *arguments: str | Path) -> dict[str, Any]:
        """The only result of `lakthan tsa verify`, trusting the authority's root."""
        result = await lakthan("verify", *arguments, "--trust", self.trust, "--json")
        return only(result)

    def openssl(self, *arguments: str | Path) -> str:
        """All that `openssl ts` prints."""
        command = [need("openssl"), "ts", *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        return done.stdout


@pytest.fixture
async def client(database_url: str, tmp_path: Path) -> AsyncIterator[Client]:
    """A document and a running authority."""
    async with running_tsa(database_url, tmp_path / "authority", new_unit()) as authority:
        folder = tmp_path / "files"
        folder.mkdir()
        client = Client(authority, folder)
        client.document.write_text(TEXT, encoding="utf-8")
        yield client


def only(result: Result) -> dict[str, Any]:
    """The one result in what `--json` printed."""
    document = json.loads(result.stdout)
    [found] = document["results"]
    assert document["exit_code"] == found["exit_code"] == result.exit_code
    answer: dict[str, Any] = found
    return answer


def failed(result: dict[str, Any]) -> set[str]:
    """The checks that failed."""
    return {check["name"] for check in result["checks"] if check["outcome"] == "failed"}


@pytest.mark.parametrize("name", imprint.ASKED)
async def test_openssl_verifies_what_we_have_stamped(client: Client, name: str) -> None:
    """With every hash, the response beside the document satisfies `openssl ts -verify` and our own `verify`."""
    result = await client.request(client.document, "--hash", name, "--trust", client.trust)
    assert result.exit_code == 0, result.output
    response = client.folder / "ສັນຍາ.txt.tsr"
    said = client.openssl("-verify", "-data", client.document, "-in", response, "-CAfile", client.trust)
    assert "Verification: OK" in said, said
    # The document is found beside the token.
    verified = await client.verify(response)
    assert (verified["verdict"], verified["token"]["hash_algorithm"]) == ("valid", name)
    assert not failed(verified)


@pytest.mark.parametrize(
    "options", [["-sha256"], ["-sha512", "-no_nonce"], ["-sha3-384", "-tspolicy", POLICY]], ids=str
)
async def test_we_verify_what_openssl_has_asked_for(client: Client, options: list[str]) -> None:
    """A query by OpenSSL, carried by somebody else: `verify` takes the reply with the query alone, or the document."""
    client.openssl("-query", "-data", client.document, "-cert", *options, "-out", "request.tsq")
    query, response = client.folder / "request.tsq", client.folder / "response.tsr"
    response.write_bytes((await client.authority.post(query.read_bytes())).body)
    assert (await client.verify(response, "--query", query))["verdict"] == "valid"
    both = await client.verify(response, "--query", query, "--data", client.document)
    assert both["verdict"] == "valid"
    assert {"nonce", "policy", "imprint"} <= {check["name"] for check in both["checks"]}


async def test_openssl_and_we_refuse_the_same(client: Client) -> None:
    """Another document, another root, a turned bit in the token: not valid here, FAILED there."""
    await client.request(client.document)
    response = client.folder / "ສັນຍາ.txt.tsr"
    other = client.folder / "other.txt"
    other.write_text("another")
    strange = new_ca("Another Root").write(client.folder, "strange")[0]
    turned = client.folder / "turned.tsr"
    octets = bytearray(response.read_bytes())
    octets[-1] ^= 1
    turned.write_bytes(octets)
    for token, data, root, checks in (
        (response, other, client.trust, {"imprint"}),
        (response, client.document, strange, {"trust"}),
        (turned, client.document, client.trust, {"signature"}),
    ):
        result = only(await lakthan("verify", token, "--data", data, "--trust", root, "--json"))
        assert (result["verdict"], result["exit_code"]) == ("not valid", 1)
        assert failed(result) == checks
        assert "Verification: FAILED" in client.openssl("-verify", "-data", data, "-in", token, "-CAfile", root)


async def test_a_token_without_certificates(client: Client) -> None:
    """`--no-certs` makes a small token; whoever verifies it gives the certificates, to us or to OpenSSL."""
    result = await client.request(client.document, "--no-certs", "-o", client.folder / "small.tst")
    assert result.exit_code == 0, result.output
    assert "the unit's certificate was not asked for" in result.output
    small = client.folder / "small.tst"
    assert small.stat().st_size < 1000
    given = client.folder / "given.pem"
    given.write_bytes(
        (client.authority.folder / "tsu.pem").read_bytes() + (client.authority.folder / "chain.pem").read_bytes()
    )
    assert failed(await client.verify(small, "--data", client.document)) == {"signer"}
    assert (await client.verify(small, "--data", client.document, "--chain", given))["verdict"] == "valid"
    said = client.openssl(
        *("-verify", "-data", client.document, "-in", small, "-token_in", "-CAfile", client.trust, "-untrusted", given)
    )
    assert "Verification: OK" in said, said


async def test_the_digest_is_enough(client: Client) -> None:
    """Who has the digest of a document need not have the document."""
    await client.request(client.document, "-o", client.folder / "token.tsr")
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert (await client.verify(client.folder / "token.tsr", "--digest", digest))["verdict"] == "valid"
    assert failed(await client.verify(client.folder / "token.tsr", "--digest", "00" * 32)) == {"imprint"}


async def test_embedded(client: Client) -> None:
    """`--embed` keeps document and token in one file, which verifies by itself, and can be taken apart again."""
    result = await client.request(client.document, "--embed", "--trust", client.trust)
    assert result.exit_code == 0, result.output
    whole = client.folder / "ສັນຍາ.txt.tsd"
    client.document.unlink()
    assert (await client.verify(whole))["verdict"] == "valid"
    shown = json.loads((await lakthan("show", whole, "--json")).stdout)
    assert shown["metaData"]["fileName"] == "ສັນຍາ.txt"
    assert (await lakthan("convert", whole, client.folder / "alone.tst")).exit_code == 0
    client.document.write_text(TEXT, encoding="utf-8")
    assert (await client.verify(client.folder / "alone.tst", "--data", client.document))["verdict"] == "valid"
    spoiled = client.folder / "spoiled.tsd"
    spoiled.write_bytes(whole.read_bytes().replace(TEXT.encode(), TEXT.encode().upper()[:-1] + b"!"))
    assert failed(await client.verify(spoiled)) == {"imprint"}


async def test_convert_and_back(client: Client) -> None:
    """A response becomes a token and a response again, octet for octet; OpenSSL reads both."""
    await client.request(client.document)
    response, token, again = client.folder / "ສັນຍາ.txt.tsr", client.folder / "a.tst", client.folder / "b.tsr"
    assert (await lakthan("convert", response, token)).exit_code == 0
    assert (await lakthan("convert", token, again)).exit_code == 0
    assert again.read_bytes() == response.read_bytes()
    common = ("-data", client.document, "-CAfile", client.trust)
    assert "Verification: OK" in client.openssl("-verify", *common, "-in", token, "-token_in")
    assert "Verification: OK" in client.openssl("-verify", *common, "-in", again)
    for source, target, words in (
        (response, token, "is there already"),
        (response, client.folder / "c.pdf", "only .tsr (response) and .tst (token)"),
        (client.document, client.folder / "c.tst", "cannot be read as a time-stamp"),
    ):
        result = await lakthan("convert", source, target)
        assert result.exit_code == 3
        assert words in result.output


async def test_a_token_is_never_replaced_unasked(client: Client) -> None:
    """The second run keeps the first token and says so; nobody was asked. `--force` is for those who mean it."""
    await client.request(client.document)
    response = client.folder / "ສັນຍາ.txt.tsr"
    first = response.read_bytes()
    result = await client.request(client.document, url="http://127.0.0.1:9/")
    assert result.exit_code == 3
    assert "is there already" in result.output
    assert response.read_bytes() == first
    assert (await client.request(client.document, "--force")).exit_code == 0
    assert response.read_bytes() != first


async def test_where_tokens_must_not_go(client: Client) -> None:
    """A token never takes the place of a document or of another token, and nothing is asked before that is clear."""
    other = client.folder / "more" / client.document.name
    other.parent.mkdir()
    other.write_text("another of this name")
    for arguments, words in (
        ([client.document, "-o", client.document, "--force"], "would replace a document"),
        ([client.document, other, "-o", client.folder / "out"], "two tokens would go to"),
        ([client.document, other, "-o", client.document], "is a file, and several tokens need a folder"),
        ([client.document, "-o", client.folder / "x.tsd"], "a .tsd is what --embed makes"),
        ([client.document, "--embed", "--no-certs"], "--no-certs leaves nothing to check or to embed"),
        ([client.document, "--policy", "best"], "is no object identifier"),
        ([client.document, "--hash", "sha1"], "sha1"),
        ([client.folder / "none.txt"], "cannot be read"),
    ):
        result = await client.request(*arguments, url="http://127.0.0.1:9/")
        assert result.exit_code == 3, result.output
        assert words in result.output
    assert not [path for path in client.folder.rglob("*") if path.suffix in (".tsr", ".tst", ".tsd")]


async def test_a_hundred_files_at_once(client: Client) -> None:
    """Every file has its token in the folder, each of its own document, and each line says so."""
    files = [client.folder / f"{number:03}.txt" for number in range(100)]
    for file in files:
        file.write_text(file.name)
    out = client.folder / "out"
    result = await client.request(*files, "-o", out, "--jobs", "16")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("stamped") == 100
    tokens = sorted(out.iterdir())
    assert [token.name for token in tokens] == [f"{file.name}.tsr" for file in files]
    verdict = json.loads(
        (await lakthan("verify", *tokens, "--trust", client.trust, "--json", "--data", files[7])).stdout
    )
    assert [each["verdict"] for each in verdict["results"]].count("valid") == 1
    assert verdict["results"][7]["verdict"] == "valid"
    assert verdict["exit_code"] == 1
    assert len({each["token"]["serial_number"] for each in verdict["results"]}) == 100


async def test_a_large_file_is_read_in_pieces(client: Client) -> None:
    """Sixty-four mebibytes are stamped, embedded and verified."""
    large = client.folder / "large.bin"
    with large.open("wb") as file:
        for number in range(64):
            file.write(bytes([number]) * 1024 * 1024)
    result = await client.request(large, "--embed", "--hash", "sha512")
    assert result.exit_code == 0, result.output
    assert (await client.verify(client.folder / "large.bin.tsd"))["verdict"] == "valid"


async def test_a_refusal_is_told_in_the_authoritys_words(client: Client) -> None:
    """Exit code 2, failInfo and text; and nothing is kept."""
    result = await client.request(client.document, "--policy", "1.2.3", "--json")
    refused = only(result)
    assert (refused["verdict"], refused["exit_code"]) == ("refused", 2)
    assert refused["status"]["fail_info"] == ["unacceptedPolicy"]
    assert "the policy 1.2.3 is not offered here" in refused["problem"]
    assert [path.name for path in client.folder.iterdir()] == [client.document.name]


def refusal(number: int) -> bytes:
    """A TimeStampResp that says no."""
    return der.sequence(der.sequence(der.integer(2), der.named_bit(number)))


@pytest.mark.parametrize(
    ("handler", "exit_code", "words"),
    [
        (saying(refusal(14)), 2, "rejection, timeNotAvailable"),
        (saying(refusal(25)), 2, "rejection, systemFailure"),
        (saying(refusal(3)), 2, "rejection, bit 3"),
        (saying(der.sequence(der.sequence(der.integer(3)))), 2, "waiting"),
        (saying(b"no such page", 404, "text/plain"), 4, "the server says 404 Not Found: no such page"),
        (saying(b"<html>", 200, "text/html"), 4, "not a TimeStampResp"),
        (saying(b""), 4, "not a TimeStampResp"),
        (saying(b"\x30" * 2_000_000), 4, "more than 1048576 octets"),
        (saying(b"", 503), 4, "wants to be asked again"),
        (saying(b"secret", 401), 4, "401 Unauthorized"),
    ],
)
async def test_no_token(client: Client, handler: Handler, exit_code: int, words: str) -> None:
    """The protocol's refusals are 2, whatever else comes is 4; both say why, and nothing is kept."""
    async with server(handler) as url:
        result = await client.request(client.document, "--tries", "1", url=url)
    assert result.exit_code == exit_code, result.output
    assert words in result.output
    assert [path.name for path in client.folder.iterdir()] == [client.document.name]


async def test_nobody_there_and_silence(client: Client) -> None:
    """No connection, and an authority that says nothing until the deadline."""

    async def silent(_: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    result = await client.request(client.document, url="http://127.0.0.1:9/")
    assert (result.exit_code, "Connection refused" in result.output) == (4, True)
    async with server(silent) as url:
        result = await client.request(client.document, "--timeout", "0.3", url=url)
    assert (result.exit_code, "no answer within 0.3 s" in result.output) == (4, True)


@dataclass
class Busy:
    """An authority in front of the real one, which sends the first `times` requests away with these headers."""

    authority: Authority
    times: int
    status: int
    retry_after: Callable[[], str | None]
    asked: int = 0

    async def __call__(self, http_request: web.BaseRequest) -> web.Response:
        """One request."""
        self.asked += 1
        if self.asked <= self.times:
            wait = self.retry_after()
            return web.Response(status=self.status, headers={} if wait is None else {"Retry-After": wait})
        reply = await self.authority.post(await http_request.read())
        return web.Response(body=reply.body, content_type=REPLY_TYPE)


def soon() -> str:
    """An HTTP date that is past when it is read."""
    return format_datetime(datetime.now(UTC), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("retry_after", [lambda: "0", soon, lambda: None, lambda: "whenever"], ids=range(4))
async def test_a_busy_authority_is_asked_again(
    client: Client, status: int, retry_after: Callable[[], str | None]
) -> None:
    """HTTP 429 and 503 are no refusals: it is asked again when Retry-After says so, in either of its forms."""
    busy = Busy(client.authority, 1, status, retry_after)
    async with server(busy) as url:
        result = await client.request(client.document, "--json", url=url)
    assert only(result)["tries"] == busy.asked == 2


async def test_patience_has_an_end(client: Client) -> None:
    """An authority that stays busy, or names a time far off, is told of after as many tries as were allowed."""
    busy = Busy(client.authority, 100, 429, lambda: "0")
    async with server(busy) as url:
        result = await client.request(client.document, "--tries", "3", url=url)
    assert (result.exit_code, busy.asked) == (4, 3)
    assert "it is busy" in result.output
    busy = Busy(client.authority, 100, 503, lambda: "86400")
    async with server(busy) as url:
        result = await client.request(client.document, "--tries", "3", url=url)
    assert (result.exit_code, busy.asked) == (4, 1)
    assert "in 86400 s" in result.output


async def test_a_burst_against_a_quota(client: Client) -> None:
    """Thirty files at an authority that takes every second request: all are stamped in the end."""
    files = [client.folder / f"{number}.txt" for number in range(30)]
    for file in files:
        file.write_text(file.name)
    asked = 0

    async def every_second(http_request: web.BaseRequest) -> web.Response:
        nonlocal asked
        asked += 1
        if asked % 2:
            return web.Response(status=429, headers={"Retry-After": "0"})
        reply = await client.authority.post(await http_request.read())
        return web.Response(body=reply.body, content_type=REPLY_TYPE)

    async with server(every_second) as url:
        result = await client.request(*files, "--tries", "50", "--jobs", "8", url=url)
    assert result.exit_code == 0, result.output


async def test_an_api_token_is_sent(client: Client) -> None:
    """The first line of the file goes along as a bearer token, and nowhere else."""
    seen: list[str] = []

    async def handler(http_request: web.BaseRequest) -> web.Response:
        seen.append(http_request.headers.get("Authorization", ""))
        return web.Response(body=refusal(2), content_type=REPLY_TYPE)

    secret = client.folder / "secret"
    secret.write_text("s3cr3t\nnot this\n")
    async with server(handler) as url:
        result = await client.request(client.document, "--bearer-file", secret, url=url)
    assert seen == ["Bearer s3cr3t"]
    assert "s3cr3t" not in result.output


@asynccontextmanager
async def between(
    authority: Authority, *, request: Callable[[bytes], bytes] = bytes, reply: Callable[[bytes], bytes] = bytes
) -> AsyncIterator[str]:
    """Somebody between the command and the authority, who changes requests or replies; gives the URL."""

    async def handler(http_request: web.BaseRequest) -> web.Response:
        answer = await authority.post(request(await http_request.read()))
        return web.Response(body=reply(answer.body), content_type=REPLY_TYPE)

    async with server(handler) as url:
        yield url


def turn_last_bit(octets: bytes) -> bytes:
    """The last bit of the signature turned."""
    return octets[:-1] + bytes([octets[-1] ^ 1])


async def test_a_token_that_does_not_check_out_is_not_kept(client: Client) -> None:
    """Another document's token, another nonce, a broken signature, no certificate: exit code 1 and no file."""
    digest = hashlib.sha256(TEXT.encode()).digest()
    for tampered, checks in (
        ({"reply": turn_last_bit}, {"signature"}),
        ({"request": lambda _: request_for(digest, nonce=1, cert_req=True)}, {"nonce"}),
        ({"request": lambda _: request_for(digest, cert_req=True)}, {"nonce"}),
        ({"request": lambda asked: asked.replace(digest, bytes(32))}, {"imprint"}),
        ({"request": lambda asked: bytes([0x30, len(asked) - 5]) + asked[2:-3]}, {"signer"}),
    ):
        async with between(client.authority, **tampered) as url:
            result = await client.request(client.document, "--json", url=url)
        assert (only(result)["verdict"], result.exit_code) == ("not valid", 1)
        assert failed(only(result)) == checks
    assert [path.name for path in client.folder.iterdir()] == [client.document.name]


async def test_show(client: Client) -> None:
    """Requests, responses, tokens and refusals in the RFC's names, from files and from standard input."""
    await client.request(client.document)
    (client.folder / "no.tsr").write_bytes(refusal(14))
    (client.folder / "q.tsq").write_bytes(request_for(bytes(32), nonce=255, req_policy=POLICY, cert_req=True))
    query = json.loads((await lakthan("show", client.folder / "q.tsq", "--json")).stdout)
    assert query["messageImprint"] == {"hashAlgorithm": "sha256", "hashedMessage": "00" * 32}
    assert (query["reqPolicy"], query["nonce"], query["certReq"]) == (POLICY, "ff", True)
    shown = (await lakthan("show", client.folder / "ສັນຍາ.txt.tsr")).stdout
    for words in ("message: TimeStampResp", "status: granted", "genTime: 20", "name: signingCertificateV2", "TSU ເວລາ"):
        assert words in shown
    refused = (await lakthan("show", client.folder / "no.tsr")).stdout
    assert "timeNotAvailable" in refused
    piped = CliRunner().invoke(main, ["tsa", "show"], input=(client.folder / "q.tsq").read_bytes())
    assert "message: TimeStampReq" in piped.stdout
    nonsense = await lakthan("show", client.document)
    assert nonsense.exit_code == 3


async def test_verify_says_what_is_missing(client: Client) -> None:
    """Usage is 3: a request in place of a token, no document, no such file; a kept refusal is 2."""
    (client.folder / "no.tsr").write_bytes(refusal(14))
    (client.folder / "q.tsq").write_bytes(request_for())
    await client.request(client.document, "-o", client.folder / "token.tsr")
    trust = ("--trust", client.trust)
    for arguments, exit_code, words in (
        (["no.tsr"], 2, "the authority said rejection, timeNotAvailable"),
        (["q.tsq"], 3, "is a request"),
        (["token.tsr"], 3, "give it with --data"),
        (["none.tsr"], 3, "cannot be read"),
        (["token.tsr", "--digest", "xyz"], 3, "is not hexadecimal"),
        (["token.tsr", "--digest", "00", "--data", "token.tsr"], 3, "say the same thing"),
        (["token.tsr", "--query", "token.tsr"], 3, "is no request"),
    ):
        found = [str(client.folder / each) if "." in each else each for each in arguments]
        result = await lakthan("verify", *found, *trust)
        assert result.exit_code == exit_code, result.output
        assert words in result.output


# From here on: is the unit revoked?


def crl(
    issuer: Issued,
    revoked: Sequence[tuple[Issued, datetime, x509.ReasonFlags | None]] = (),
    *,
    until: timedelta = timedelta(days=1),
) -> bytes:
    """A CRL, DER."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - timedelta(days=2))
        .next_update(now + until)
    )
    for certificate, when, reason in revoked:
        entry = (
            x509.RevokedCertificateBuilder().serial_number(certificate.certificate.serial_number).revocation_date(when)
        )
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


@dataclass
class Publication:
    """Serves CRLs by path. The unit's CRL is at /ca, that of its CA at /root."""

    files: dict[str, bytes]

    async def __call__(self, http_request: web.BaseRequest) -> web.Response:
        """One request."""
        body = self.files.get(http_request.path)
        return web.Response(status=404) if body is None else web.Response(body=body)


def _points_to(url: str) -> tuple[x509.ExtensionType, bool]:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point]), False


@pytest.mark.parametrize(
    ("after", "reason", "outcome"),
    [
        (None, None, "ok"),
        (timedelta(hours=1), x509.ReasonFlags.superseded, "note"),
        (timedelta(hours=1), x509.ReasonFlags.cessation_of_operation, "note"),
        (timedelta(hours=1), x509.ReasonFlags.key_compromise, "failed"),
        (timedelta(hours=1), None, "failed"),
        (timedelta(hours=-1), x509.ReasonFlags.superseded, "failed"),
    ],
    ids=str,
)
async def test_revocation_by_crl(
    database_url: str, tmp_path: Path, after: timedelta | None, reason: x509.ReasonFlags | None, outcome: str
) -> None:
    """RFC 3161 §4: what was stamped before its unit was replaced stays good; after a compromise, or without a reason,
    nothing of it does.
    """
    publication = Publication({})
    async with server(publication) as url:
        unit = new_unit(extensions=(*UNIT_EXTENSIONS, _points_to(f"{url}/ca")))
        async with running_tsa(database_url, tmp_path / "authority", unit) as authority:
            client = Client(authority, tmp_path)
            client.document.write_text(TEXT, encoding="utf-8")
            assert (await client.request(client.document)).exit_code == 0
        when = datetime.now(UTC).replace(microsecond=0)
        publication.files["/ca"] = crl(unit.intermediate, [] if after is None else [(unit.leaf, when + after, reason)])
        # The CA above the unit is the anchor here, so that there is one certificate to ask about.
        trust = ("--trust", authority.folder / "chain.pem")
        result = only(
            await lakthan("verify", tmp_path / "ສັນຍາ.txt.tsr", *trust, "--revocation", "--json"),
        )
    assert [check["outcome"] for check in result["checks"] if check["name"] == "revocation"] == [outcome]
    assert result["verdict"] == ("not valid" if outcome == "failed" else "valid")


async def test_a_status_that_cannot_be_had_is_no_good_status(database_url: str, tmp_path: Path) -> None:
    """No CRL there, one of somebody else, an old one, one that covers something else: the check fails and says why."""
    publication = Publication({})
    async with server(publication) as url:
        unit = new_unit(extensions=(*UNIT_EXTENSIONS, _points_to(f"{url}/ca")))
        async with running_tsa(database_url, tmp_path / "authority", unit) as authority:
            client = Client(authority, tmp_path)
            client.document.write_text(TEXT, encoding="utf-8")
            await client.request(client.document)
        for body, words in (
            (None, "404 Not Found"),
            (b"<html>", "not a CRL that can be read"),
            (crl(new_ca("Time-Stamping CA")), "not signed by the issuer"),
            (crl(unit.intermediate, until=timedelta(days=-1)), "is not of now"),
        ):
            publication.files = {} if body is None else {"/ca": body}
            trust = ("--trust", authority.folder / "chain.pem")
            result = only(await lakthan("verify", tmp_path / "ສັນຍາ.txt.tsr", *trust, "--revocation", "--json"))
            assert failed(result) == {"revocation"}
            assert words in result["problem"]


def test_help_lists_every_command() -> None:
    """The users' commands, and the operators' beside them."""
    said = CliRunner().invoke(main, ["tsa", "--help"]).stdout
    for name in ("request", "verify", "show", "convert", "freeze", "tokens", "retention"):
        assert f"  {name} " in said
    assert "Exit codes" in said
