"""OCSP over HTTP as real clients speak it, some of them badly: by curl, and by octets on a bare socket."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import re
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from support.demo import Demo
from support.programs import need


def request_for(
    demo: Demo, name: str = "good", *, algorithm: hashes.HashAlgorithm | None = None, nonce: bytes | None = None
) -> bytes:
    """An OCSPRequest about a certificate of the Public CA."""
    certificate = x509.load_pem_x509_certificate((demo.pki / f"{name}.pem").read_bytes())
    issuer = x509.load_pem_x509_certificate((demo.pki / "ca.pem").read_bytes())
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, algorithm or hashes.SHA256())
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def target_for(request: bytes) -> str:
    """What comes after the host in a GET."""
    return "/" + urllib.parse.quote(base64.b64encode(request).decode(), safe="")


def is_good(body: bytes) -> bool:
    """True for an answer that says good."""
    return ocsp.load_der_ocsp_response(body).certificate_status is ocsp.OCSPCertStatus.GOOD


def curl(demo: Demo, scratch: Path, *arguments: str, target: str = "/") -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of an answer."""
    head, body = scratch / "head", scratch / "body"
    body.write_bytes(b"")
    command: list[str | Path] = [
        need("curl"),
        "-sS",
        "--path-as-is",
        "-D",
        head,
        "-o",
        body,
        *arguments,
        demo.urls["ocsp"] + target,
    ]
    subprocess.run(command, check=True, timeout=30)
    lines = re.split(r"\r\n\r\n", head.read_bytes().decode("latin-1").rstrip())[-1].split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in headers.items()}, body.read_bytes()


def spoken(demo: Demo, *parts: bytes, pause: float = 0.05) -> bytes:
    """All that comes back when these octets are sent one after the other on one connection, until it is closed."""
    host, _, port = demo.urls["ocsp"].removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def bodies(received: bytes) -> list[bytes]:
    """The bodies of the responses in a stream of them, by their Content-Length."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), head
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length, head
        found.append(rest[: int(length[1])])
        received = rest[int(length[1]) :]
    return found


def test_a_cache_may_keep_and_revalidate_an_answer(demo: Demo, tmp_path: Path) -> None:
    """GET brings the caching headers of RFC 9919 §7.2, and the ETag brings 304 without a body.

    OCSP-34, OCSP-47, OCSP-48, OCSP-49, OCSP-Q54.
    """
    target = target_for(request_for(demo))
    status, headers, body = curl(demo, tmp_path, target=target)
    assert (status, headers["content-type"], is_good(body)) == (200, "application/ocsp-response", True)
    assert re.fullmatch(r"max-age=\d+, public, no-transform, must-revalidate", headers["cache-control"])
    assert {"date", "last-modified", "expires", "etag", "content-length"} <= set(headers)
    assert headers["etag"] == f'"{hashlib.sha256(body).hexdigest()}"'
    assert "pragma" not in headers
    status, again, body = curl(demo, tmp_path, "-H", f"If-None-Match: {headers['etag']}", target=target)
    assert (status, body, again["etag"]) == (304, b"", headers["etag"])
    status, _, body = curl(demo, tmp_path, "-H", 'If-None-Match: "0000"', target=target)
    assert (status, is_good(body)) == (200, True)


def test_what_binds_nobody_is_never_kept(demo: Demo, tmp_path: Path) -> None:
    """An unknown certificate and a malformed request get status 200, and no cache may keep the answer.

    OCSP-49, OCSP-Q18, OCSP-Q52.
    """
    for target in (target_for(request_for(demo, "unissued")), "/MAAA"):
        status, headers, _ = curl(demo, tmp_path, target=target)
        assert status == 200
        assert headers["content-type"] == "application/ocsp-response"
        assert "no-store" in headers["cache-control"]
        assert "etag" not in headers


def test_head(demo: Demo, tmp_path: Path) -> None:
    """HEAD gives the headers of GET and no body. OCSP-Q10."""
    target = target_for(request_for(demo))
    _, get, body = curl(demo, tmp_path, target=target)
    received = spoken(demo, f"HEAD {target} HTTP/1.1\r\nHost: ocsp\r\nConnection: close\r\n\r\n".encode())
    head, _, nothing = received.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200")
    assert nothing == ""
    assert f"Content-Length: {len(body)}" in head
    assert f"ETag: {get['etag']}" in head


@pytest.mark.parametrize(
    "options",
    [
        ["-H", "Content-Type:"],
        ["-H", "Content-Type: text/plain"],
        ["-H", "Content-Type: application/x-www-form-urlencoded"],
        ["-H", "Transfer-Encoding: chunked"],
        ["-H", "Expect: 100-continue"],
        ["-H", "Accept-Encoding: gzip, deflate, br"],
        ["-H", "Content-Encoding: gzip"],
        ["--http1.0"],
        ["-H", "Host: ocsp.example"],
        ["-H", "Connection: close"],
        ["-H", "Accept: text/html"],
    ],
)
def test_the_ways_in_which_clients_post(demo: Demo, tmp_path: Path, options: list[str]) -> None:
    """Missing and wrong media types, chunks, an encoding that is claimed and not applied: all get their answer.

    OCSP-34, OCSP-Q12, OCSP-Q14, OCSP-Q15.
    """
    (tmp_path / "request").write_bytes(request_for(demo))
    status, headers, body = curl(demo, tmp_path, "--data-binary", f"@{tmp_path / 'request'}", *options)
    assert (status, headers["content-type"]) == (200, "application/ocsp-response")
    assert "content-encoding" not in headers
    assert is_good(body)


@pytest.mark.parametrize("path", ["/ocsp", "/a/b/"])
def test_post_to_any_path(demo: Demo, tmp_path: Path, path: str) -> None:
    """A client whose URL has a path is not turned away for it. OCSP-Q56."""
    (tmp_path / "request").write_bytes(request_for(demo))
    status, _, body = curl(demo, tmp_path, "--data-binary", f"@{tmp_path / 'request'}", target=path)
    assert (status, is_good(body)) == (200, True)


def variants(request: bytes) -> Iterable[tuple[str, str]]:
    """The targets that clients make of the same request."""
    plain = base64.b64encode(request).decode()
    yield "as it is", f"/{plain}"
    yield "two slashes", f"//{plain}"
    yield "small hexadecimal", "/" + re.sub("%..", lambda match: match[0].lower(), urllib.parse.quote(plain, safe=""))
    yield "quoted twice", "/" + urllib.parse.quote(urllib.parse.quote(plain, safe=""), safe="")
    yield "URL alphabet", "/" + base64.urlsafe_b64encode(request).decode()
    yield "no padding", "/" + plain.rstrip("=")
    yield "as a query", "/?" + urllib.parse.quote(plain, safe="")


def test_the_ways_in_which_clients_get(demo: Demo, tmp_path: Path) -> None:
    """Every spelling of a GET that clients are known to use brings the same answer.

    OCSP-46, OCSP-Q3, OCSP-Q4, OCSP-Q5, OCSP-Q7.
    """
    for name, target in variants(request_for(demo)):
        status, _, body = curl(demo, tmp_path, target=target)
        assert (name, status, is_good(body)) == (name, 200, True)


def test_a_get_may_be_long(demo: Demo, tmp_path: Path) -> None:
    """The 255 octets of RFC 9919 §6 bind clients; with SHA-512 and the longest nonce there are more. OCSP-Q9."""
    target = target_for(request_for(demo, algorithm=hashes.SHA512(), nonce=bytes(range(128))))
    status, headers, body = curl(demo, tmp_path, target=target)
    assert len(target) > 400
    assert (status, is_good(body), "no-store" in headers["cache-control"]) == (200, True, True)


def test_http_1_0_without_host(demo: Demo) -> None:
    """Routers and old libraries speak HTTP/1.0 and name no host; the connection ends after the answer.

    OCSP-Q13, OCSP-Q16.
    """
    request = request_for(demo)
    posted = spoken(demo, b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(request) + request)
    got = spoken(demo, f"GET {target_for(request)} HTTP/1.0\r\n\r\n".encode())
    assert [is_good(body) for received in (posted, got) for body in bodies(received)] == [True, True]


def test_a_body_in_pieces(demo: Demo) -> None:
    """A request whose octets trickle in is put together again, wherever it was cut."""
    request = request_for(demo)
    head = b"POST / HTTP/1.1\r\nHost: ocsp\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(request)
    whole = head + request
    cuts = [0, 7, len(head) - 3, len(head), len(head) + 1, len(head) + 20, len(whole)]
    received = spoken(demo, *(whole[start:end] for start, end in itertools.pairwise(cuts)))
    assert [is_good(body) for body in bodies(received)] == [True]


def test_requests_in_a_row_without_waiting(demo: Demo) -> None:
    """Pipelined requests, GET and POST mixed, are answered each and in order."""
    request = request_for(demo)
    get = f"GET {target_for(request)} HTTP/1.1\r\nHost: ocsp\r\n\r\n".encode()
    post = b"POST / HTTP/1.1\r\nHost: ocsp\r\nContent-Length: %d\r\n\r\n" % len(request) + request
    revoked = request_for(demo, "revoked")
    last = b"POST / HTTP/1.1\r\nHost: ocsp\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(revoked) + revoked
    received = spoken(demo, get + post + get + post + last)
    assert [is_good(body) for body in bodies(received)] == [True, True, True, True, False]


def test_a_body_that_is_really_compressed_is_no_request(demo: Demo, tmp_path: Path) -> None:
    """Nobody compresses OCSP requests; whoever does learns it in the protocol, not by a broken connection."""
    (tmp_path / "request").write_bytes(gzip.compress(request_for(demo)))
    status, _, body = curl(demo, tmp_path, "--data-binary", f"@{tmp_path / 'request'}", "-H", "Content-Encoding: gzip")
    assert status == 200
    answer = ocsp.load_der_ocsp_response(body)
    assert answer.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


@pytest.mark.parametrize(
    ("options", "target", "expected"),
    [
        ([], "/", 200),
        ([], "/favicon.ico", 404),
        (["-X", "OPTIONS"], "/", 405),
        (["-X", "DELETE"], "/", 405),
    ],
)
def test_probes_and_browsers_get_a_small_plain_answer(
    demo: Demo, tmp_path: Path, options: list[str], target: str, expected: int
) -> None:
    """Whoever does not speak OCSP is told so in a line of text. OCSP-Q10."""
    status, headers, body = curl(demo, tmp_path, *options, target=target)
    assert status == expected
    assert headers["content-type"].startswith("text/plain")
    assert len(body) < 200


def test_a_huge_body_is_refused(demo: Demo, tmp_path: Path) -> None:
    """More than any OCSPRequest has is not read to its end."""
    (tmp_path / "request").write_bytes(bytes(1 << 20))
    status, _, _ = curl(demo, tmp_path, "--data-binary", f"@{tmp_path / 'request'}")
    assert status == 413
