"""nginx and HAProxy before a real responder and a real time-stamp authority, with the files of `examples/`.

Only addresses and folders are replaced by the test's; everything else is as an operator would copy it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from interop.test_static_nginx import targets
from support.pki import Issued, issue
from support.programs import need
from support.responder import ACTOR, OCSPReply, Responder, request_for, running_responder
from support.tsa import Authority, new_unit, running_tsa

EXAMPLES = Path(__file__).parents[2] / "examples"
TRY_LATER = bytes.fromhex("30030a0103")
PROXIES = ("nginx", "haproxy")


@dataclass
class Proxied:
    """A proxy with both services behind it."""

    ocsp: str
    tsa: str
    responder: Responder
    authority: Authority
    folder: Path

    async def get(self, target: str) -> OCSPReply:
        """A GET of exactly this target."""
        return await self._ask("GET", self.ocsp + target, None)

    async def post(self, body: bytes) -> OCSPReply:
        """A POST to the responder."""
        return await self._ask("POST", f"{self.ocsp}/", body)

    async def _ask(self, method: str, url: str, body: bytes | None) -> OCSPReply:
        async with self.responder.session.request(method, URL(url, encoded=True), data=body) as reply:
            return OCSPReply(reply.status, reply.headers, await reply.read())


def replaced(text: str, *replacements: tuple[str, str]) -> str:
    """The example with the test's addresses; each documented one must be there."""
    for documented, ours in replacements:
        assert documented in text, documented
        text = text.replace(documented, ours)
    return text


def configuration(proxy: str, folder: Path, ports: tuple[int, int], proxied: tuple[Responder, Authority]) -> list[str]:
    """Write the proxy's file; how it is started."""
    (responder, authority), (ocsp_port, tsa_port) = proxied, ports
    ocsp, ocsp_admin = responder.url.rpartition(":")[2], responder.admin_url.rpartition(":")[2]
    tsa, tsa_admin = str(authority.port), authority.admin_url.rpartition(":")[2]
    shutil.copy(EXAMPLES / proxy / "try-later.der", folder)
    if proxy == "nginx":
        text = replaced(
            (EXAMPLES / "nginx/lakthan.conf").read_text(),
            ("listen 80;\n    server_name ocsp.example;", f"listen 127.0.0.1:{ocsp_port};"),
            ("listen 80;\n    server_name tsa.example;", f"listen 127.0.0.1:{tsa_port};"),
            ("server 127.0.0.1:6960", f"server 127.0.0.1:{ocsp}"),
            ("server 127.0.0.1:3161", f"server 127.0.0.1:{tsa}"),
            ("/var/cache/nginx/lakthan", str(folder / "cache")),
            ("/etc/nginx/lakthan", str(folder)),
        )
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = "".join(
            f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = (
            f"{user} daemon off; pid {folder / 'pid'}; error_log stderr; events {{ }}\nhttp {{ {temporary}{text} }}\n"
        )
        (folder / "nginx.conf").write_text(main)
        return [str(need("nginx")), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    text = replaced(
        (EXAMPLES / "haproxy/haproxy.cfg").read_text(),
        ("bind :80", f"bind 127.0.0.1:{ocsp_port}"),
        ("bind :81", f"bind 127.0.0.1:{tsa_port}"),
        ("127.0.0.1:6960 port 6961", f"127.0.0.1:{ocsp} port {ocsp_admin}"),
        ("127.0.0.1:3161 port 3162", f"127.0.0.1:{tsa} port {tsa_admin}"),
        ("/etc/haproxy/lakthan", str(folder)),
    )
    (folder / "haproxy.cfg").write_text(text)
    return [str(need("haproxy")), "-db", "-f", str(folder / "haproxy.cfg")]


@asynccontextmanager
async def proxied(proxy: str, database_url: str, folder: Path, free_ports: tuple[int, int]) -> AsyncIterator[Proxied]:
    """Both services, and the proxy before them."""
    for name in ("ocsp", "tsa", "proxy"):
        (folder / name).mkdir()
    async with AsyncExitStack() as stack:
        responder = await stack.enter_async_context(running_responder(database_url, folder / "ocsp"))
        authority = await stack.enter_async_context(running_tsa(database_url, folder / "tsa", new_unit()))
        command = configuration(proxy, folder / "proxy", free_ports, (responder, authority))
        process = await asyncio.create_subprocess_exec(*command)
        try:
            urls = [f"http://127.0.0.1:{port}" for port in free_ports]
            async with asyncio.timeout(20):
                while not await answers(responder.session, *urls):  # noqa: ASYNC110 - others to ask
                    await asyncio.sleep(0.05)
            yield Proxied(urls[0], urls[1], responder, authority, folder / "proxy")
        finally:
            process.terminate()
            await process.wait()


async def answers(session: aiohttp.ClientSession, ocsp: str, tsa: str) -> bool:
    """Whether the proxy and what is behind it say their own words to a GET: a greeting, and 405."""
    try:
        async with session.get(ocsp) as first, session.get(tsa) as second:
            return (first.status, first.content_type, second.status) == (200, "text/plain", 405)
    except aiohttp.ClientError:
        return False


@pytest.fixture(params=PROXIES)
async def behind(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path, unused_tcp_port_factory: object
) -> AsyncIterator[Proxied]:
    """Each of the proxies."""
    ports = (unused_tcp_port_factory(), unused_tcp_port_factory())  # type: ignore[operator]
    async with proxied(request.param, database_url, tmp_path, ports) as running:
        yield running


async def test_the_path_arrives_as_it_came(behind: Proxied) -> None:
    """Every spelling of a GET that clients are known to use is answered through the proxy, and so is POST.

    The certificates are chosen so that the base64 has two slashes side by side, which proxies like to make one, and a
    plus sign. OCSP-Q2, OCSP-Q3, OCSP-Q4, OCSP-Q6.
    """
    responder = behind.responder
    for certificate in awkward(responder, 2):
        await responder.issue(certificate)
        request = request_for(certificate, responder.ca)
        direct = await responder.post(request)
        assert direct.cert_statuses == ["good"]
        for spelling, target in targets(base64.b64encode(request).decode()).items():
            reply = await behind.get(target)
            assert (spelling, reply.http_status, reply.body) == (spelling, 200, direct.body)
        assert (await behind.post(request)).body == direct.body


def awkward(responder: Responder, count: int) -> list[Issued]:
    """So many certificates whose requests in base64 have what proxies break."""
    found: list[Issued] = []
    while len(found) < count:
        certificate = issue("citizen", responder.ca)
        request = base64.b64encode(request_for(certificate, responder.ca))
        if b"//" in request and b"+" in request:
            found.append(certificate)
    return found


async def test_what_the_proxy_keeps(behind: Proxied) -> None:
    """An answer by GET is kept, with the headers that the responder gave; a refusal, an answer with a nonce and one
    that binds nobody are asked for again each time.
    """
    responder = behind.responder
    good = await responder.issue(issue("good", responder.ca))
    target = "/" + base64.b64encode(request_for(good, responder.ca)).decode()
    first = await behind.get(target)
    asked = await requests(responder)
    again = await behind.get(target)
    assert (again.body, again.headers["ETag"]) == (first.body, first.headers["ETag"])
    assert "must-revalidate" in again.headers["Cache-Control"]
    assert await requests(responder) == asked
    never = "/" + base64.b64encode(request_for(issue("unknown", responder.ca), responder.ca)).decode()
    nonced = "/" + base64.b64encode(request_for(good, responder.ca, nonce=bytes(range(16)))).decode()
    for each in (never, nonced, "/MAA="):
        for _ in range(2):
            asked = await requests(responder)
            assert "no-store" in (await behind.get(each)).headers["Cache-Control"]
            assert await requests(responder) == asked + 1
    await responder.writer.revoke(responder.authority_id, good.serial_number, actor=ACTOR)
    async with asyncio.timeout(20):
        while (await behind.post(request_for(good, responder.ca))).cert_statuses != ["revoked"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def requests(responder: Responder) -> float:
    """How many requests the responder has answered by GET."""
    metrics = await responder.metrics()
    name = re.compile(r'lakthan_ocsp_requests_total\{method="GET",')
    return sum(value for sample, value in metrics.items() if name.match(sample))


async def test_openssl_stamps_through_the_proxy(behind: Proxied, tmp_path: Path) -> None:
    """A token that `openssl ts` asked for and verifies; a body beyond the limit gets 413."""
    query, reply = tmp_path / "query.tsq", tmp_path / "reply.tsr"
    openssl = need("openssl")
    ask: list[str | Path] = [openssl, "ts", "-query", "-digest", "ab" * 32, "-sha256", "-cert", "-out", query]
    await asyncio.to_thread(subprocess.run, ask, check=True, capture_output=True)
    url = f"{behind.tsa}/"
    headers = {"Content-Type": "application/timestamp-query"}
    async with behind.responder.session.post(url, data=query.read_bytes(), headers=headers) as response:
        reply.write_bytes(await response.read())
        assert (response.status, response.content_type) == (200, "application/timestamp-reply")
    folder = behind.authority.folder
    verify: list[str | Path] = [openssl, "ts", "-verify", "-queryfile", query, "-in", reply]
    verify += ["-CAfile", folder / "root.pem", "-untrusted", folder / "chain.pem"]
    done = await asyncio.to_thread(subprocess.run, verify, capture_output=True, text=True, check=False)
    assert "Verification: OK" in done.stdout + done.stderr
    async with behind.responder.session.post(url, data=bytes(20_000), headers=headers) as response:
        assert response.status == 413


@pytest.mark.parametrize("proxy", PROXIES)
async def test_nobody_behind(proxy: str, database_url: str, tmp_path: Path, unused_tcp_port_factory: object) -> None:
    """When no responder is there the proxy itself says tryLater, by GET and by POST, and nobody may keep that."""
    ports = (unused_tcp_port_factory(), unused_tcp_port_factory())  # type: ignore[operator]
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(proxied(proxy, database_url, tmp_path, ports))
        file = next((tmp_path / "proxy").glob("*.c*f*g"), None) or tmp_path / "proxy/nginx.conf"
        gone = unused_tcp_port_factory()  # type: ignore[operator]
        other = tmp_path / "other"
        other.mkdir()
        again = (unused_tcp_port_factory(), unused_tcp_port_factory())  # type: ignore[operator]
        text = file.read_text().replace(behind.responder.url.rpartition(":")[2], str(gone))
        text = text.replace(behind.responder.admin_url.rpartition(":")[2], str(gone)).replace("proxy/pid", "proxy/pid2")
        for before, now in zip(ports, again, strict=True):
            text = text.replace(str(before), str(now))
        (other / file.name).write_text(text)
        command = {"nginx": ["-p", str(other), "-c"], "haproxy": ["-db", "-f"]}[proxy]
        process = await asyncio.create_subprocess_exec(need(proxy), *command, str(other / file.name))
        try:
            url, kept = f"http://127.0.0.1:{again[0]}", ""
            async with asyncio.timeout(20):
                while True:
                    try:
                        async with behind.responder.session.get(f"{url}/MAA=") as reply:
                            body, kept = await reply.read(), reply.headers.get("Cache-Control", "")
                            if (reply.status, body) == (200, TRY_LATER):
                                break
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.1)
            assert kept == "max-age=0, no-cache, no-store"
            async with behind.responder.session.post(url, data=b"0\x00") as reply:
                assert (reply.status, reply.content_type) == (200, "application/ocsp-response")
                assert await reply.read() == TRY_LATER
        finally:
            process.terminate()
            await process.wait()
