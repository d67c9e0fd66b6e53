"""Private keys that a REST API signs with: how it is called, whatever its dialect.

Promises:

- At most `x-sessions` signatures are under way, each over a connection that is kept, and `x-waiting` wait; the next
  caller gets `SignerBusy` at once. Nobody waits longer than `x-deadline` seconds for his turn (`SignerBusy`), nor
  longer than that for the backend (`SignerUnusable`).
- Tried again, after a pause that grows and is never the same for all: what the backend could not do now (429, 5xx, a
  lost connection, no answer). Never: what it refused. A signature made twice does no harm.
- After five failures in a row the backend is left alone: every caller gets `SignerUnusable` at once, and one a second
  tries again. Being told to slow down is no failure: that is `SignerBusy`.
- Every signature is verified before it leaves. A key that was deleted and made anew under its name, or a proxy that
  answers in the backend's place, is found out here and not by those who rely on the signature.
- Secrets are in no message, and neither is what a backend repeats of them.

Refuses to know: what is signed, certificates, and any dialect (`vault`, `awskms`).

Trusted: nobody for the signatures. The backend's operator can sign whatever he likes with the key, and refuse to.
"""

from __future__ import annotations

import asyncio
import http.client
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from lakthan.algorithms import SignatureAlgorithm, signature_algorithm_of
from lakthan.errors import KeyAway, SignerBusy, SignerUnusable
from lakthan.keys.bounds import Bounds
from lakthan.keys.verification import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.keys.remote_uri import RemoteURI

_ATTEMPTS = 3
_FIRST_PAUSE_SECONDS = 0.1
# An answer with a signature of RSA-4096 in base64 has 1 KB; one with fifty versions of a public key 40 KB.
_LONGEST_ANSWER = 1 << 20
_LONGEST_COMPLAINT = 300


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: `path` begins with a slash."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None = None


class Backend(Protocol):
    """A dialect: what to ask, and what the answers mean. It reaches for no network itself."""

    @property
    def uri(self) -> RemoteURI:
        """Which key, and how it is used."""

    @property
    def address(self) -> str:
        """`https://HOST[:PORT]`, without a slash at the end."""

    def opening(self) -> Ask:
        """Ask for the public key."""

    def opened(self, body: bytes) -> PublicKeyTypes:
        """The public key; from now on exactly this one signs. Raises `ConfigError` when it cannot sign here."""

    def signing(self, message: bytes, algorithm: SignatureAlgorithm) -> Ask:
        """Ask for a signature. Raises `SignerUnusable` when there are no credentials."""

    def signature(self, body: bytes) -> bytes:
        """The signature in an answer. Raises `ValueError` when there is none."""

    def complaint(self, status: int, body: bytes) -> tuple[str, bool]:
        """What the backend says of a request that it did not fulfil, and whether it only asks to slow down."""

    def secrets(self) -> Iterator[str]:
        """What must be in no message."""


class _Away(SignerUnusable):
    """The backend cannot now; it may soon."""


class _NoAnswer(_Away):
    """Not within the deadline."""


class _SlowDown(SignerBusy):
    """The backend wants fewer requests."""


class RemoteSigner:
    """One key of one backend."""

    def __init__(self, backend: Backend) -> None:
        """Fetches the public key, and so blocks the caller's thread. Raises `ConfigError`, and its kind `KeyAway` for
        what may pass without a change of the configuration.
        """
        self._backend = backend
        self._uri = uri = backend.uri
        # Here and not at the first signature: reading the system's CAs takes milliseconds.
        self._tls = uri.tls()
        self.public_key: PublicKeyTypes = self._first_look()
        self.algorithm: SignatureAlgorithm = signature_algorithm_of(self.public_key, pss=uri.pss)
        self._session: aiohttp.ClientSession | None = None
        # Signatures are verified here: that costs up to a millisecond (P-384), too much for the event loop. Not in the
        # loop's own threads, which look up host names and may all be stuck in that, for the sake of another key.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="verify")
        self._places = asyncio.Semaphore(uri.sessions)
        self._bounds = Bounds(str(uri), str(uri), at_once=uri.sessions, waiting=uri.waiting)

    def _first_look(self) -> PublicKeyTypes:
        """The public half, by the blocking client of the standard library: keys are opened at start, when nothing else
        is served, and by callers that are no coroutines.
        """
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_pause_seconds(attempt))
            try:
                return self._backend.opened(self._fetch(self._backend.opening()))
            except (_Away, _SlowDown) as error:
                failure = error
            except SignerUnusable as error:  # refused: whoever gave the token may put that right
                raise KeyAway(str(error)) from error
            except (ValueError, msgspec.MsgspecError, UnsupportedAlgorithm) as error:
                raise KeyAway(
                    f"the key {str(self._uri)!r}: what the backend answers holds no public key: {error}"
                ) from error
        raise KeyAway(str(failure)) from failure

    def _fetch(self, ask: Ask) -> bytes:
        """Ask, and wait for the answer in the caller's thread."""
        address = urlsplit(self._backend.address)
        timeout = self._uri.deadline_seconds / 2
        connection = (
            http.client.HTTPSConnection(address.netloc, timeout=timeout, context=self._tls)
            if address.scheme == "https"
            else http.client.HTTPConnection(address.netloc, timeout=timeout)
        )
        try:
            connection.request(ask.method, address.path + ask.path, ask.body, ask.headers)
            response = connection.getresponse()
            body = response.read(_LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise _Away(f"{self._uri}: {self._clean(str(error) or type(error).__name__)}") from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise self._refusal(response.status, body)
        return body

    async def sign(self, message: bytes) -> bytes:
        """See `Signer.sign`."""
        self._bounds.enter()
        try:
            try:
                async with asyncio.timeout(self._uri.deadline_seconds):
                    await self._places.acquire()
            except TimeoutError as error:
                raise self._bounds.busy(f"{self._uri}: not his turn within {self._uri.deadline_seconds} s") from error
            try:
                return await self._sign(message)
            finally:
                self._places.release()
        finally:
            self._bounds.leave()

    async def aclose(self) -> None:
        """See `Signer.aclose`."""
        self._bounds.close()
        self._threads.shutdown(wait=False)
        if self._session is not None:
            await self._session.close()

    async def _sign(self, message: bytes) -> bytes:
        """One signature, verified, by one whose turn it is."""
        attempts = 1 if self._bounds.begin() else _ATTEMPTS
        try:
            signature = await self._persist(message, attempts)
            verified = partial(verify, self.public_key, self.algorithm.hash, signature, message, pss=self.algorithm.pss)
            await asyncio.get_running_loop().run_in_executor(self._threads, verified)
        except InvalidSignature:
            failure = SignerUnusable(f"{self._uri}: the backend gave a signature that its key does not verify")
            self._bounds.failed(failure)
            raise failure from None
        except _NoAnswer as error:
            self._bounds.failed(error, "timed out")
            raise
        except SignerUnusable as error:
            self._bounds.failed(error)
            raise
        except SignerBusy as error:
            raise self._bounds.busy(str(error)) from error
        self._bounds.succeeded()
        return signature

    async def _persist(self, message: bytes, attempts: int) -> bytes:
        failure: Exception = _NoAnswer(f"{self._uri}: no answer in time")
        with suppress(TimeoutError):  # the last failure, or this one, says more
            async with asyncio.timeout(self._uri.deadline_seconds):
                for attempt in range(attempts):
                    if attempt:
                        await asyncio.sleep(_pause_seconds(attempt))
                    try:
                        return await self._once(message)
                    except (_Away, _SlowDown) as error:
                        failure = error
        raise failure

    async def _once(self, message: bytes) -> bytes:
        ask = self._backend.signing(message, self.algorithm)
        if self._session is None:
            self._session = self._new_session()
        try:
            # Half of the time for each attempt: one that hangs leaves time for another.
            async with (
                asyncio.timeout(self._uri.deadline_seconds / 2),
                self._session.request(
                    ask.method,
                    self._backend.address + ask.path,
                    headers=ask.headers,
                    data=ask.body,
                    allow_redirects=False,
                ) as response,
            ):
                body = await _bounded(response.content)
        except TimeoutError as error:
            raise _NoAnswer(f"{self._uri}: no answer in time") from error
        except aiohttp.ClientError as error:
            raise _Away(f"{self._uri}: {self._clean(str(error) or type(error).__name__)}") from error
        if response.status != http.HTTPStatus.OK:
            raise self._refusal(response.status, body)
        try:
            return self._backend.signature(body)
        except (ValueError, msgspec.MsgspecError) as error:
            raise SignerUnusable(f"{self._uri}: what the backend answers holds no signature: {error}") from error

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._uri.sessions, ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            # None but ours: when aiohttp's ends at the same moment, it swallows the end of ours.
            timeout=aiohttp.ClientTimeout(total=None),
        )

    def _refusal(self, status: int, body: bytes) -> SignerBusy | SignerUnusable:
        """What an answer other than 200 means for a caller."""
        complaint, slow_down = self._backend.complaint(status, body)
        text = f"{self._uri}: HTTP {status}{': ' if complaint else ''}{self._clean(complaint)}"
        if slow_down:
            return _SlowDown(text)
        return _Away(text) if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR else SignerUnusable(text)

    def _clean(self, text: str) -> str:
        """What the backend says, without the secrets that it may repeat, and without what upsets a terminal."""
        for secret in self._backend.secrets():
            text = text.replace(secret, "…")
        return "".join(character for character in text if character.isprintable())[:_LONGEST_COMPLAINT]


def _pause_seconds(attempt: int) -> float:
    """Before the attempt after `attempt` failed ones: twice as long each time, and never the same for all callers."""
    longest: float = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
    return random.uniform(longest / 2, longest)  # noqa: S311 - it spreads callers, and keeps nothing secret


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """The body, as far as it is read at all."""
    try:
        return await content.readexactly(_LONGEST_ANSWER)
    except asyncio.IncompleteReadError as whole:
        return whole.partial
