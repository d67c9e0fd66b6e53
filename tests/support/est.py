"""An EST server for the tests (RFC 7030): real TLS, a real CA, and it can be told to be slow, strict or odd.

Built on cryptography and aiohttp; it reads requests and writes PKCS#7 with nothing of ours.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.pki import Issued, issue, new_ca


@dataclass
class ESTServer:
    """`ca` issues what is asked for, with the extensions of the request and for `lifetime`. `people`: who may come by
    HTTP Basic, else a client certificate of `clients` is demanded. `next`: how the next requests are met: a status, or
    octets (a body of 200). `pending`: how often a request is told to come again. `requests`: what came.
    """

    home: Path
    ca: Issued
    lifetime: timedelta = timedelta(days=7)
    people: dict[str, str] = field(default_factory=dict)
    next: deque[int | bytes] = field(default_factory=deque)
    pending: int = 0
    media_type: str = "application/pkcs7-mime; smime-type=certs-only"
    extensions: list[tuple[x509.ExtensionType, bool]] | None = None
    chain: bool = False
    requests: list[x509.CertificateSigningRequest] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self.tls_ca = new_ca("EST TLS CA")
        self.clients = new_ca("EST clients")
        self.home.mkdir(exist_ok=True)
        server = issue(
            "EST",
            self.tls_ca,
            extensions=((x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False),),
        )
        self._server = server.write(self.home, "server")
        self.tls_ca.write(self.home, "est-ca")
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        issue("timer", self.clients, extensions=((usage, False),)).write(self.home, "client")
        (self.home / "clients.pem").write_bytes(self.clients.certificate.public_bytes(Encoding.PEM))

    def issue(self, request: x509.CertificateSigningRequest) -> x509.Certificate:
        """What was asked for, under the CA."""
        now = datetime.now(UTC).replace(microsecond=0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(request.subject)
            .issuer_name(self.ca.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + self.lifetime)
        )
        asked = [(each.value, each.critical) for each in request.extensions]
        for value, critical in asked if self.extensions is None else self.extensions:
            builder = builder.add_extension(value, critical)
        return builder.sign(self.ca.key, hashes.SHA256())

    def certs_only(self, *certificates: x509.Certificate) -> bytes:
        """PKCS#7 in Base64, as RFC 7030 §4.2.3 has it."""
        return base64.encodebytes(pkcs7.serialize_certificates(list(certificates), Encoding.DER))

    async def _simplereenroll(self, http_request: web.Request) -> web.Response:
        self.paths.append(http_request.path)
        if http_request.content_type != "application/pkcs10":
            return web.Response(status=415)
        if self.people and not self._knows(http_request.headers.get("Authorization", "")):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="est"'}, text="who are you?")
        request = x509.load_der_x509_csr(base64.b64decode(await http_request.read()))
        assert request.is_signature_valid
        self.requests.append(request)
        if self.pending:
            self.pending -= 1
            return web.Response(status=202, headers={"Retry-After": "1"})
        if self.next:
            way = self.next.popleft()
            if isinstance(way, int):
                headers = {"Location": f"{self.url}/elsewhere"} if way in (301, 302, 307) else {}
                return web.Response(status=way, headers=headers, text="not today,\n\x1b[31m really")
            return web.Response(body=way, headers={"Content-Type": self.media_type})
        issued = [self.issue(request), *([self.ca.certificate] if self.chain else [])]
        headers = {"Content-Type": self.media_type, "Content-Transfer-Encoding": "base64"}
        return web.Response(body=self.certs_only(*issued), headers=headers)

    def _knows(self, authorization: str) -> bool:
        kind, _, value = authorization.partition(" ")
        user, _, password = base64.b64decode(value).decode().partition(":") if kind == "Basic" else ("", "", "")
        return self.people.get(user) == password

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the end of the block, on a free port of the loopback, in a thread of its own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._server)
        if not self.people:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.home / "clients.pem")
        loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def serve() -> None:
            application = web.Application()
            application.router.add_post("/.well-known/est/{tail:.*}", self._simplereenroll)
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await stop.wait()
            await runner.cleanup()

        def run() -> None:
            try:
                loop.run_until_complete(serve())
            finally:
                started.set()
                loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        started.wait()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
