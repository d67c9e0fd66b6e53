"""Web servers that staple the demo's answers (RFC 6066 §8), and the TLS clients that look at what is stapled."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from interop.clients.web_servers import WebServer, serving
from support.demo import Demo
from support.programs import need

AUTHORITIES = {"public": ".", "gov": "gov"}
PROGRAMS = ("nginx", "apache2")
both_authorities = pytest.mark.parametrize("authority", AUTHORITIES.values(), ids=AUTHORITIES)
# Curl's exit code when the status of a server is bad, or is not there to be seen.
CURLE_SSL_INVALIDCERTSTATUS = 91
STAPLE_SECONDS = 20.0

Start = Callable[..., WebServer]


@pytest.fixture
def start(demo: Demo, tmp_path: Path) -> Iterator[Start]:
    """Starts a web server with a certificate of the demo, stopped at the end."""
    with ExitStack() as stack:

        def start_one(program: str, authority: str, name: str, *, staples: bool = True) -> WebServer:
            server = serving(program, tmp_path / program, pki=demo.pki, authority=authority, name=name, staples=staples)
            return stack.enter_context(server)

        yield start_one


def run(demo: Demo, program: str, *arguments: str | int) -> tuple[int, str]:
    """Run a client in the folder of the certificates with nothing to send; gives its exit code and what it printed."""
    done = subprocess.run(
        [need(program), *map(str, arguments)],
        cwd=demo.pki,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
    )
    return done.returncode, done.stdout.decode(errors="replace")


def openssl(demo: Demo, server: WebServer) -> str:
    """What `openssl s_client` says about the server and what is stapled."""
    where = ("-connect", f"127.0.0.1:{server.port}", "-servername", "localhost")
    return run(demo, "openssl", "s_client", *where, "-status", "-verify_return_error", "-CAfile", "root.pem")[1]


def curl(demo: Demo, server: WebServer) -> tuple[int, str]:
    """Curl fetches a page only if the stapled answer is there, verifies from the root down, and says good."""
    return run(demo, "curl", "-sS", "--cert-status", "--cacert", "root.pem", f"https://localhost:{server.port}/")


def gnutls(demo: Demo, server: WebServer) -> tuple[int, str]:
    """GnuTLS looks at what is stapled, and asks the responder itself about a server that staples nothing."""
    return run(demo, "gnutls-cli", "--ocsp", "--x509cafile", "root.pem", "-p", server.port, "localhost")


def until_stapled(demo: Demo, server: WebServer) -> str:
    """What OpenSSL says once the server staples: nginx asks the responder when the first client comes, and has
    nothing for that one.
    """
    deadline = time.monotonic() + STAPLE_SECONDS
    while "OCSP response: no response sent" in (said := openssl(demo, server)):
        assert time.monotonic() < deadline, server.errors
        time.sleep(0.1)
    return said


@both_authorities
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_good_answer_is_stapled_and_taken(demo: Demo, start: Start, program: str, authority: str) -> None:
    """The server fetches the answer, checks it, and staples it; OpenSSL shows it, curl and GnuTLS insist on it.

    OCSP-Q47.
    """
    server = start(program, authority, "good")
    said = until_stapled(demo, server)
    assert "OCSP Response Status: successful" in said, said
    assert re.search(r"Cert Status: good", said), said
    assert "Verify return code: 0 (ok)" in said, said
    code, said = curl(demo, server)
    assert code == 0, said
    code, said = gnutls(demo, server)
    assert "Status: The certificate is trusted." in said, said
    assert "OCSP status request" in said, said
    assert "Connecting to OCSP server" not in said, said


@both_authorities
def test_a_stapled_revocation_is_refused(demo: Demo, start: Start, authority: str) -> None:
    """Apache staples the answer that its own certificate is revoked, and no client that looks goes on."""
    server = start("apache2", authority, "revoked")
    said = until_stapled(demo, server)
    assert "Cert Status: revoked" in said, said
    assert "Revocation Reason: keyCompromise" in said, said
    code, said = curl(demo, server)
    assert (code, "revocation reason: keyCompromise" in said) == (CURLE_SSL_INVALIDCERTSTATUS, True), said
    code, said = gnutls(demo, server)
    assert code != 0
    assert "The certificate is NOT trusted. The certificate chain is revoked." in said, said
    assert "status revoked (reason: keyCompromise)" in server.errors


@both_authorities
def test_nginx_keeps_a_revocation_to_itself(demo: Demo, start: Start, authority: str) -> None:
    """Nginx reads that its certificate is revoked, logs it, and staples nothing; curl insists, and goes away."""
    server = start("nginx", authority, "revoked")
    deadline = time.monotonic() + STAPLE_SECONDS
    while 'certificate status "revoked" in the OCSP response' not in server.errors:
        assert time.monotonic() < deadline, server.errors
        assert "OCSP response: no response sent" in openssl(demo, server)
        time.sleep(0.1)
    code, said = curl(demo, server)
    assert (code, "No OCSP response received" in said) == (CURLE_SSL_INVALIDCERTSTATUS, True), said


@both_authorities
@pytest.mark.parametrize(
    ("name", "verdict"),
    [("good", "Status: The certificate is trusted."), ("revoked", "*** Certificate was revoked at ")],
)
def test_gnutls_asks_by_itself_where_nothing_is_stapled(
    demo: Demo, start: Start, authority: str, name: str, verdict: str
) -> None:
    """GnuTLS then asks the responder that the certificate names, from its TLS client; curl takes no silence."""
    server = start("nginx", authority, name, staples=False)
    code, said = gnutls(demo, server)
    print(said)
    assert verdict in said, said
    assert (code == 0) == (name == "good")
    assert "Connecting to OCSP server" in said, said
    code, said = curl(demo, server)
    assert (code, "No OCSP response received" in said) == (CURLE_SSL_INVALIDCERTSTATUS, True), said
