"""nginx gives out the folder that `lakthan publish --static` writes, and the usual clients take it for a responder.

The configurations are those of docs/publishing.md.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from lakthan.store.records import CRLReason
from lakthan_cli.__main__ import main
from support.pki import Issued
from support.presigning import Presigned, presigning
from support.programs import need
from support.responder import request_for

from .test_go import client, said_by
from .test_java import GET, classes, verdicts

ROOT = Path(__file__).parents[2]
__all__ = ["classes", "client"]  # fixtures

NAMES = {"good": None, "revoked": CRLReason.KEY_COMPROMISE}


@dataclass
class Nginx:
    """A running nginx before a folder of answers, and the PKI that these are about, as files in `pki`."""

    url: str
    folder: Path
    pki: Path
    presigned: Presigned
    certificates: dict[str, Issued]

    def get(self, target: str, *options: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and body of a GET with exactly this target."""
        head, body = self.pki / "head", self.pki / "body"
        command: list[str | Path] = [
            need("curl"),
            "-sS",
            "--path-as-is",
            "-D",
            head,
            "-o",
            body,
            *options,
            self.url + target,
        ]
        body.write_bytes(b"")
        subprocess.run(command, check=True, timeout=30)
        lines = head.read_text("latin-1").rstrip().split("\n")
        headers = dict(line.strip().split(": ", 1) for line in lines[1:])
        return int(lines[0].split(" ")[1]), {key.lower(): value for key, value in headers.items()}, body.read_bytes()

    def request(self, name: str, algorithm: hashes.HashAlgorithm | None = None) -> str:
        """The base64 of a request."""
        made = request_for(self.certificates[name], self.presigned.responder.ca, algorithm=algorithm)
        return base64.b64encode(made).decode()

    def publish(self) -> str:
        """Run the command once; gives what it says."""
        result = CliRunner().invoke(
            main, ["publish", "--static", str(self.folder), "--database", self.presigned.config.database.url]
        )
        assert result.exit_code == 0, result.output
        output: str = result.output
        return output


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a judge in the folder with the PKI."""
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=30)


def configuration(which: int, folder: Path, socket_of: str, responder: str) -> str:
    """One of the documented configurations, with this folder and these addresses."""
    text = (ROOT / "docs/publishing.md").read_text(encoding="utf-8")
    server: str = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)[which]
    for documented, ours in (
        ("listen 80;", f"listen {socket_of};"),
        ("root /srv/ocsp;", f"root {folder};"),
        ("http://127.0.0.1:6960", responder),
    ):
        assert documented in server or which
        server = server.replace(documented, ours)
    return server


@asynccontextmanager
async def serving(presigned: Presigned, tmp_path: Path, port: int, which: int) -> AsyncIterator[Nginx]:
    """Issue, revoke, publish, and start nginx."""
    access = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(f"http://127.0.0.1:{port}")
            )
        ]
    )
    certificates = {}
    for name, reason in NAMES.items():
        certificates[name] = await presigned.issue(name, extensions=((access, False),))
        certificates[name].write(tmp_path, name)
        if reason is not None:
            await presigned.responder.writer.revoke(
                presigned.authority_id, certificates[name].serial_number, reason=reason, actor="test"
            )
        await presigned.until(certificates[name], "good" if reason is None else "revoked")
    presigned.responder.ca.write(tmp_path, "ca")
    await presigned.until_rows(len(NAMES) * 2)
    folder = tmp_path / "static"
    nginx = Nginx(f"http://127.0.0.1:{port}", folder, tmp_path, presigned, certificates)
    await asyncio.to_thread(nginx.publish)
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{name}_temp_path {tmp_path / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = tmp_path / "nginx.conf"
    server = configuration(which, folder, f"127.0.0.1:{port}", presigned.responder.url)
    file.write_text(
        f"{user} daemon off; pid {tmp_path / 'pid'}; error_log stderr; events {{ }}\n"
        f"http {{ access_log off;\n{temporary}{server} }}\n"
    )
    process = await asyncio.create_subprocess_exec(need("nginx"), "-p", tmp_path, "-c", file)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield nginx
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def nginx(database_url: str, tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[Nginx]:
    """An nginx with a responder behind it."""
    async with presigning(database_url, tmp_path) as presigned, serving(presigned, tmp_path, unused_tcp_port, 0) as one:
        yield one


def targets(request: str) -> dict[str, str]:
    """The spellings of a GET that clients are known to use."""
    quoted = urllib.parse.quote(request, safe="")
    return {
        "quoted": f"/{quoted}",
        "as it is": f"/{request}",
        "two slashes": f"//{request}",
        "small hexadecimal": "/" + re.sub("%..", lambda match: match[0].lower(), quoted),
        "no padding": "/" + request.rstrip("="),
        "quoted twice": "/" + urllib.parse.quote(quoted, safe=""),
        "URL alphabet": "/" + request.replace("+", "-").replace("/", "_"),
    }


async def test_every_spelling_of_a_get(nginx: Nginx) -> None:
    """For both hashes nginx finds the file for every spelling, or the responder behind it has the same octets.

    OCSP-46, OCSP-57, OCSP-Q2, OCSP-Q3.
    """
    for name, expected in (("good", "GOOD"), ("revoked", "REVOKED")):
        for algorithm in (hashes.SHA1(), hashes.SHA256()):
            request = nginx.request(name, algorithm)
            published = (nginx.folder / request).read_bytes()
            for spelling, target in targets(request).items():
                status, headers, body = await asyncio.to_thread(nginx.get, target)
                assert (spelling, status, headers["content-type"]) == (spelling, 200, "application/ocsp-response")
                assert (spelling, body) == (spelling, published)
            response = ocsp.load_der_ocsp_response(published)
            assert response.certificate_status.name == expected
            assert response.hash_algorithm.name == algorithm.name


async def test_what_caches_are_told(nginx: Nginx) -> None:
    """A file comes with a max-age, a Last-Modified that is thisUpdate, and an ETag that brings 304; a refusal of the
    responder behind it is never kept.
    """
    target = "/" + urllib.parse.quote(nginx.request("good"), safe="")
    _, headers, body = await asyncio.to_thread(nginx.get, target)
    assert headers["cache-control"] == "max-age=300, public, no-transform, must-revalidate"
    assert parsedate_to_datetime(headers["last-modified"]) == ocsp.load_der_ocsp_response(body).this_update_utc
    status, _, nothing = await asyncio.to_thread(nginx.get, target, "-H", f"If-None-Match: {headers['etag']}")
    assert (status, nothing) == (304, b"")
    _, headers, _ = await asyncio.to_thread(nginx.get, "/MAAA")
    assert "no-store" in headers["cache-control"]


async def test_openssl_believes_the_files(nginx: Nginx) -> None:
    """What nginx gives for a GET verifies with openssl under the CA, and says what is on record."""
    for name in NAMES:
        _, _, body = await asyncio.to_thread(nginx.get, "/" + nginx.request(name, hashes.SHA1()))
        (nginx.pki / "answer").write_bytes(body)
        command: list[str | Path] = [
            need("openssl"),
            "ocsp",
            "-respin",
            "answer",
            "-issuer",
            "ca.pem",
            "-CAfile",
            "ca.pem",
        ]
        command += ["-cert", f"{name}.pem", "-no_nonce"]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=nginx.pki, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        assert "Response verify OK" in done.stderr
        assert f"{name}.pem: {name}" in done.stdout


async def test_go_asks_nginx(nginx: Nginx, client: Path) -> None:
    """Go's client, by GET in both spellings and by POST, with the hashes that are signed ahead."""
    said = await asyncio.to_thread(said_by, client, nginx.pki, "ca.pem", "good.pem", "revoked.pem")
    ours = [line for line in said if line[1] in {"SHA-1", "SHA-256"}]
    assert len(ours) == 2 * 2 * 3
    assert all(line[3] == {"good.pem": "good", "revoked.pem": "revoked 1"}[line[0]] for line in ours), said


async def test_java_asks_nginx(nginx: Nginx, classes: Path) -> None:
    """Java's own revocation checker, by GET, with OCSP alone and no way around it."""
    paths = [f"ca.pem,{name}.pem" for name in NAMES]
    said = await asyncio.to_thread(verdicts, classes, nginx.pki, [GET], *paths)
    assert said == ["valid", "REVOKED KEY_COMPROMISE"]


async def test_gnutls_believes_the_files(nginx: Nginx) -> None:
    """GnuTLS's ocsptool verifies what nginx gives."""
    _, _, body = await asyncio.to_thread(nginx.get, "/" + nginx.request("good", hashes.SHA1()))
    (nginx.pki / "answer").write_bytes(body)
    command: list[str | Path] = [
        need("ocsptool"),
        "--verify-response",
        "--load-issuer",
        "ca.pem",
        "--load-trust",
        "ca.pem",
    ]
    command += ["--load-cert", "good.pem", "--infile", "answer"]
    done = await asyncio.to_thread(run, command, nginx.pki)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_nginx_alone(database_url: str, tmp_path: Path, unused_tcp_port: int) -> None:
    """Without a responder what is no file is unauthorized with status 200, by GET and POST, and never kept."""
    async with (
        presigning(database_url, tmp_path) as presigned,
        serving(presigned, tmp_path, unused_tcp_port, 1) as nginx,
    ):
        _, _, body = await asyncio.to_thread(nginx.get, "/" + nginx.request("good"))
        assert ocsp.load_der_ocsp_response(body).certificate_status is ocsp.OCSPCertStatus.GOOD
        for target, options in (("/MAAA", ()), ("/", ("--data-binary", "x"))):
            status, headers, body = await asyncio.to_thread(nginx.get, target, *options)
            assert (status, headers["content-type"]) == (200, "application/ocsp-response")
            assert ocsp.load_der_ocsp_response(body).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED
            assert "no-store" in headers["cache-control"]


async def test_what_no_longer_holds_goes(nginx: Nginx) -> None:
    """Publishing again changes nothing; after a change it puts the new answer in the place of the old one. A file that
    is no answer stays.
    """
    stranger = nginx.folder / "robots.txt"
    stranger.write_text("nobody\n")
    assert "0 answers written, 0 removed, 4 as they were" in await asyncio.to_thread(nginx.publish)
    certificate = nginx.certificates["good"]
    responder = nginx.presigned.responder
    await responder.writer.revoke(nginx.presigned.authority_id, certificate.serial_number, actor="test")
    await nginx.presigned.until(certificate, "revoked")
    assert "2 answers written, 0 removed, 2 as they were" in await asyncio.to_thread(nginx.publish)
    _, _, body = await asyncio.to_thread(nginx.get, "/" + nginx.request("good"))
    assert ocsp.load_der_ocsp_response(body).certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert stranger.read_text() == "nobody\n"
