"""The peers beside us, started from Debian's packages, and the judge that looks at one response of each before it is
measured.

Promises: every peer gives a valid answer to the same request for the same certificate, signed by the same responder;
`openssl` says so before its speed counts.

nginx gives the octets of our own answer as a static file: the bound for everything that is cached, since it does
nothing but HTTP. `openssl ocsp` is the responder of OpenSSL, which signs every answer and ends every connection.
`cfssl ocspserve` gives answers that were signed before, as a large CA would use it.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cryptography.x509 import ocsp

from support.bench_machine import BenchError, Children, Server, free_port, program, run_on, wait_for_line, wait_for_port
from support.bench_world import SMALL_ROWS, World, serial_number

_NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
{user}
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type application/ocsp-response;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    open_file_cache max=16 inactive=1h;
    open_file_cache_valid 1h;
    server {{ listen 127.0.0.1:{port} backlog=1024; root {folder}/static; }}
}}
"""
# What `openssl speed` calls them.
_SPEED = {"P-256": "ecdsap256", "RSA-2048": "rsa2048", "RSA-3072": "rsa3072"}


@dataclass(frozen=True)
class Answered:
    """A whole HTTP response. `octets`: of all of it, head included."""

    body: bytes
    octets: int


def exchange(port: int, request: bytes) -> Answered:
    """Send these octets and read one response. Raises `BenchError` unless it is 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        received = b""
        while True:
            head, _, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if length and len(body) >= int(length[1]):
                break
            more = connection.recv(65536)
            if not more:
                break
            received += more
    if not re.match(rb"HTTP/1\.[01] 200 ", received):
        raise BenchError(f"port {port} answered {received[:200]!r}")
    return Answered(body, len(received))


class Judge:
    """`openssl` looks at the first response of everybody."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._folder = world.folder / "judged"
        self._folder.mkdir(exist_ok=True)

    def answer(self, who: str, request: bytes, body: bytes) -> None:
        """Raise `BenchError` unless `body` is a valid *good* for `request`, nonce included."""
        asked, got = self._folder / f"{who}.req", self._folder / f"{who}.resp"
        asked.write_bytes(request)
        got.write_bytes(body)
        ca = str(self._world.folder / "ca.pem")
        command = ["ocsp", "-reqin", str(asked), "-respin", str(got), "-CAfile", ca]
        said = self._openssl(who, command)
        if "Response verify OK" not in said or "onceVerify" in said:
            raise BenchError(f"{who}: openssl does not accept the answer:\n{said}")
        response = ocsp.load_der_ocsp_response(body)
        wanted = ocsp.load_der_ocsp_request(request).serial_number
        if response.certificate_status is not ocsp.OCSPCertStatus.GOOD or response.serial_number != wanted:
            raise BenchError(f"{who}: the answer is {response.certificate_status} for {response.serial_number:x}")

    def token(self, who: str, request: bytes, body: bytes, kind: str) -> None:
        """Raise `BenchError` unless `body` grants a valid token for `request`."""
        asked, got = self._folder / f"{who}.tsq", self._folder / f"{who}.tsr"
        asked.write_bytes(request)
        got.write_bytes(body)
        tsu = self._world.folder / f"tsu-{kind}"
        command = ["ts", "-verify", "-queryfile", str(asked), "-in", str(got), "-CAfile", str(tsu / "root.pem")]
        said = self._openssl(who, [*command, "-untrusted", str(tsu / "chain.pem")])
        if "Verification: OK" not in said:
            raise BenchError(f"{who}: openssl does not accept the token:\n{said}")

    def _openssl(self, who: str, arguments: list[str]) -> str:
        done = subprocess.run([program("openssl"), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{who}: openssl {arguments[0]}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


def start_nginx(world: World, children: Children, core: int, answer: bytes) -> Server:
    """Serve these octets at /answer."""
    folder, port = world.folder / "nginx", free_port()
    (folder / "static").mkdir(parents=True, exist_ok=True)
    (folder / "static" / "answer").write_bytes(answer)
    user = "user root;" if os.geteuid() == 0 else ""
    path = folder / "nginx.conf"
    path.write_text(_NGINX.format(folder=folder, port=port, user=user))
    child = children.start("nginx", [program("nginx"), "-p", str(folder), "-c", str(path)], {core})
    wait_for_port(child, port)
    return Server(child, port)


def start_cfssl(world: World, children: Children, core: int, answer: bytes) -> Server:
    """Serve this answer by `cfssl ocspserve`."""
    path, port = world.folder / "cfssl.txt", free_port()
    path.write_bytes(base64.b64encode(answer) + b"\n")
    command = [program("cfssl"), "ocspserve", f"-port={port}", f"-responses={path}", "-loglevel=5"]
    # Go takes as many threads as there are cores; it gets one, like everybody here.
    child = children.start("cfssl", command, {core}, {"GOMAXPROCS": "1"})
    wait_for_port(child, port)
    return Server(child, port)


def start_openssl(world: World, children: Children, core: int, kind: str) -> Server:
    """Serve the small table by `openssl ocsp`."""
    folder, port = world.folder, free_port()
    index = folder / "index.txt"
    if not index.exists():
        rows = (
            f"V\t490101000000Z\t\t{serial_number(n).hex().upper()}\tunknown\t/CN={n}\n"
            for n in range(1, SMALL_ROWS + 1)
        )
        index.write_text("".join(rows))
    command = [program("openssl"), "ocsp", "-port", str(port), "-index", str(index), "-CA", str(folder / "ca.pem")]
    command += ["-rsigner", str(folder / f"responder-{kind}.pem"), "-rkey", str(folder / f"responder-{kind}.key")]
    command += ["-ndays", "1"]
    child = children.start(f"openssl-{kind}", command, {core})
    # It reads one connection at a time, and one that says nothing would hold it up.
    wait_for_line(child, "waiting for OCSP client connections")
    return Server(child, port)


def raw_signatures(key: Path, seconds: float, *cores: int) -> tuple[float, float]:
    """Signatures per second of the library that we use, in a process of its own on each of these cores at the same
    time, all together; and processor seconds for one.
    """
    command = [sys.executable, "-m", "support.bench_sign", str(key), str(seconds)]
    with ThreadPoolExecutor() as threads:
        all_done = list(threads.map(lambda core: run_on(core, command), cores))
    rates, cpu_seconds = [], []
    for done in all_done:
        if done.returncode:
            raise BenchError(f"the signatures alone could not be measured:\n{done.stderr}")
        rate, used = done.stdout.split()
        rates.append(float(rate))
        cpu_seconds.append(float(used))
    return sum(rates), sum(cpu_seconds) / len(cpu_seconds)


def openssl_speed(kind: str, seconds: float, core: int) -> float:
    """Signatures per second of the system's OpenSSL."""
    command = [program("openssl"), "speed", "-seconds", str(max(1, round(seconds))), _SPEED[kind]]
    done = run_on(core, command)
    if done.returncode:
        raise BenchError(f"openssl speed:\n{done.stderr}")
    return float(done.stdout.split()[-2])
