"""A key management service for tests: a real HTTP server in a thread of its own, which can be told to misbehave.

In a thread, because keys are opened by a blocking client in the test's own. What the dialects have in common is here;
`fake_vault` and `fake_awskms` sign, with real keys.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan import keys
from lakthan.config import KeyURI
from lakthan.errors import ConfigError
from support.programs import need

# The kinds of keys that the clouds have, by the names of support.pki.
VAULT_KINDS = ("P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519")
AWS_KINDS = VAULT_KINDS[:-1]


class FakeKMS:
    """`next`: how the next requests are met, one after the other: a status, octets (a body with status 200), `hang`
    (until `let_go`, or the end), `drop` (the connection), `babble` (no HTTP, and the token in it), `elsewhere` (a
    redirect), or `ok`, as all are that nothing is said of. `refusal`: a status and a body for those. `hanging`: set as
    soon as a request hangs.
    """

    def __init__(self) -> None:
        self.next: deque[str | int | bytes] = deque()
        self.asked = 0
        self.most_at_once = 0
        self.connections: set[object] = set()
        self.hanging = threading.Event()
        self.refusal: tuple[int, bytes] | None = None
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._let_go = asyncio.Event()
        self.address = ""

    async def reply(self, request: web.Request, body: bytes) -> web.Response:
        """What the dialect says to a request."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Answer those that hang."""
        self._loop.call_soon_threadsafe(self._let_go.set)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.connections.add(request.transport)
        try:
            return await self._behave(request, await request.read())
        finally:
            self._at_once -= 1

    async def _behave(self, request: web.Request, body: bytes) -> web.StreamResponse:
        behaviour = self.next.popleft() if self.next else "ok"
        if behaviour == "hang":
            self.hanging.set()
            await self._let_go.wait()
        if behaviour == "drop":
            assert request.transport is not None
            request.transport.abort()
        if behaviour == "babble":
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 x " + request.headers.get("X-Vault-Token", "").encode() + b"\r\n\r\n")
            request.transport.close()
        if behaviour == "elsewhere":
            raise web.HTTPTemporaryRedirect(f"{self.address}/elsewhere")
        if isinstance(behaviour, bytes):
            return web.Response(body=behaviour)
        if isinstance(behaviour, int):
            return web.Response(status=behaviour, body=b"the backend's own page")
        if self.refusal is not None:
            status, text = self.refusal
            return web.Response(status=status, body=text)
        return await self.reply(request, body)

    @contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator[None]:
        """Serve until the end of the block, on a free port of the loopback."""
        started = threading.Event()
        stop = asyncio.Event()

        async def serve() -> None:
            application = web.Application()
            application.router.add_route("*", "/{tail:.*}", self._handle)
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            port = runner.addresses[0][1]
            self.address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            started.set()
            await stop.wait()
            self._let_go.set()
            await runner.cleanup()

        def run() -> None:
            try:
                self._loop.run_until_complete(serve())
            finally:
                started.set()
                self._loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        started.wait()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # it never started
                self._loop.call_soon_threadsafe(stop.set)
            thread.join()


def refuses(key: KeyURI, says: str) -> None:
    """Opening this key fails with these words (a pattern)."""
    with pytest.raises(ConfigError, match=says):
        keys.open_signer(key)


async def openssl_agrees(
    public_key: PublicKeyTypes, kind: str, message: bytes, signature: bytes, home: Path, *, pss: bool = False
) -> bool:
    """Whether openssl verifies the signature of a key of this kind. `pss`: by RSASSA-PSS with 32 octets of salt."""
    (home / "message").write_bytes(message)
    (home / "signature").write_bytes(signature)
    (home / "public.pem").write_bytes(public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command: list[str] = [str(need("openssl")), "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem"]
    command += ["-rawin", "-in", "message", "-sigfile", "signature"]
    if kind != "Ed25519":
        command += ["-digest", "sha384" if kind == "P-384" else "sha256"]
    if pss:
        options = ("rsa_padding_mode:pss", "rsa_pss_saltlen:32", "rsa_mgf1_md:sha256")
        command += [word for option in options for word in ("-pkeyopt", option)]
    judge = await asyncio.create_subprocess_exec(*command, cwd=home, stdout=subprocess.PIPE)
    said, _ = await judge.communicate()
    return b"Signature Verified Successfully" in said
