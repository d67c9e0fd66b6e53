"""Private keys in an HSM, through PKCS#11.

Promises:

- One login in a process for each token, whatever the number of keys and sessions in it. A PIN that the token refused
  is never tried again by this process: three wrong ones lock many tokens.
- Vendor calls run on the signer's own threads, each with a session of its own. The event loop never waits for a device.
- At most `x-sessions` signatures are under way and `x-waiting` wait, in turn for each source (`line`); the next caller
  gets `SignerBusy` at once, and nobody waits longer than `x-deadline` seconds. A key that fails is left alone
  (`bounds`).
- A lost session, a token that was taken out, a library that wants to be started again: the next signature finds the key
  anew. While that fails, every caller gets `SignerUnusable` at once, and the device is asked once a second, not more.
- Every signature is verified before it leaves: a device may be defective, and say that all is well.

Refuses to know: what is signed, and certificates. Nothing here is called before a fork: services start their workers as
fresh processes.

Trusted: the vendor's library, which lives in this process and sees the PIN.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from lakthan import der
from lakthan.algorithms import SignatureAlgorithm, signature_algorithm_of
from lakthan.errors import ConfigError, KeyAway, SignerUnusable
from lakthan.keys import cryptoki, pkcs11_uri
from lakthan.keys.bounds import Bounds
from lakthan.keys.cryptoki import CryptokiError, Mechanism
from lakthan.keys.line import Line
from lakthan.keys.pkcs11_public import public_key_of
from lakthan.keys.pkcs11_token import Away, Token
from lakthan.keys.verification import verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.config import KeyURI
    from lakthan.keys.pkcs11_uri import PKCS11URI, Given

# ML-DSA-87 (FIPS 204, table 2), the longest that may come; RSA-4096 has 512.
_LONGEST_SIGNATURE = 4627
_MECHANISMS: dict[int, tuple[int, Given]] = {
    cryptoki.CKK_RSA: (cryptoki.CKM_RSA_PKCS, "digest-info"),
    cryptoki.CKK_EC: (cryptoki.CKM_ECDSA, "digest"),
    cryptoki.CKK_EC_EDWARDS: (cryptoki.CKM_EDDSA, "message"),
}


class _Held(threading.local):
    """What a thread holds: a session, and the key's handle in it, of one generation of the library."""

    session: int | None = None
    key = 0
    generation = -1


class _Asked:
    """A message, and who waits for its signature. `overdue`: its time is over, and a thread is still busy with it."""

    __slots__ = ("_claimed", "loop", "message", "overdue", "signature")

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.loop = asyncio.get_running_loop()
        self.signature: asyncio.Future[bytes] = self.loop.create_future()
        self.overdue = False
        self._claimed = threading.Lock()

    def claim(self) -> bool:
        """True for the first: the thread that begins with it, or the caller who leaves before that."""
        return self._claimed.acquire(blocking=False)


class PKCS11Signer:
    """One key of one token."""

    def __init__(self, uri: PKCS11URI) -> None:
        self._uri = uri
        self._token = Token(uri)
        self._library = self._token.library
        self._held = _Held()
        try:
            with self._library.opening:
                key_type, self.public_key = self._first_look()
        except CryptokiError as error:
            raise KeyAway(f"the key {uri} cannot be opened: {error}") from error
        except (SignerUnusable, Away) as error:
            raise KeyAway(str(error)) from error
        self.algorithm: SignatureAlgorithm = signature_algorithm_of(self.public_key, pss=uri.pss)
        self._key_type = key_type
        self._mechanism, self._given = _mechanism(uri, key_type)
        self._bounds = Bounds(uri.name, str(uri), at_once=uri.sessions, waiting=uri.waiting)
        self._asked: Line[_Asked] = Line()
        # Daemons: a program that ends does not wait for a device that hangs.
        for _ in range(uri.sessions):
            threading.Thread(target=self._work, name="pkcs11", daemon=True).start()

    @classmethod
    def load(cls, key: KeyURI) -> PKCS11Signer:
        """Open the key that the URI names, log in, find it. Raises `ConfigError`, and its kind `KeyAway` for what may
        pass without a change of the configuration.
        """
        return cls(pkcs11_uri.parse(key))

    def _first_look(self) -> tuple[int, PublicKeyTypes]:
        """Log in and find the key: its type and its public half. The caller's session holds the login from now on.

        A library that gives errors is started again once: it may have seen a token that was only half there.
        """
        self._token.look()
        for again in (False, True):
            with self._library.in_use() as generation:
                try:
                    session, key = self._open(generation)
                    attribute = self._library.cryptoki.attribute(session, key, cryptoki.CKA_KEY_TYPE)
                    key_type = int.from_bytes(attribute, "little")
                    return key_type, public_key_of(self._token, session, key, key_type)
                except CryptokiError:
                    if again:
                        raise
            self._library.restart(generation)
        raise AssertionError("the second time returns or raises")

    async def sign(self, message: bytes) -> bytes:
        """See `Signer.sign`."""
        self._bounds.enter()
        try:
            self._bounds.begin()
        except SignerUnusable:
            self._bounds.leave()
            raise
        asked = _Asked(message)
        self._asked.put(asked)
        try:
            async with asyncio.timeout(self._uri.deadline_seconds):
                return await asked.signature
        except TimeoutError as error:
            if asked.claim():
                self._bounds.leave()
                raise self._bounds.busy(f"{self._uri}: not his turn within {self._uri.deadline_seconds} s") from error
            failure = SignerUnusable(f"{self._uri}: no signature within {self._uri.deadline_seconds} s")
            asked.overdue = True
            self._bounds.became_overdue(failure)
            raise failure from error
        except asyncio.CancelledError:
            if asked.claim():
                self._bounds.leave()
            raise

    async def aclose(self) -> None:
        """See `Signer.aclose`. Sessions are left to the end of the process: other signers share their login."""
        self._bounds.close()
        for _ in range(self._uri.sessions):
            self._asked.end()

    def _work(self) -> None:
        """What a thread does."""
        while (asked := self._asked.get()) is not None:
            if not asked.claim():  # nobody waits any more
                continue
            signature, error = b"", None
            try:
                signature = self._sign(asked.message)
            except Exception as failure:  # noqa: BLE001 - it belongs to who asked
                error = failure
            with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                asked.loop.call_soon_threadsafe(self._done, asked, signature, error)

    def _done(self, asked: _Asked, signature: bytes, error: Exception | None) -> None:
        # Counted when the device is done, not when the caller has left: a thread is busy until then.
        self._bounds.leave()
        if asked.overdue:
            self._bounds.overdue_came_back()
        elif error is None:
            self._bounds.succeeded()
        else:
            self._bounds.failed(error)
        if asked.signature.done():  # the caller has left
            return
        if error is None:
            asked.signature.set_result(signature)
        else:
            asked.signature.set_exception(error)

    def _sign(self, message: bytes) -> bytes:
        """One signature, on a thread of the signer. What fails is tried with a new session, then with a new start."""
        data = self._prepare(message)
        generation = -1
        failure: Exception | None = None
        for attempt in range(3):
            if attempt == 2:
                self._library.restart(generation)
            try:
                with self._library.in_use() as generation:
                    if self._held.session is None or self._held.generation != generation:
                        self._open(generation)
                    raw = self._library.cryptoki.sign(
                        self._held.session or 0, self._mechanism, self._held.key, data, _LONGEST_SIGNATURE
                    )
                return self._verified(self._encode(raw), message)
            except (CryptokiError, Away) as error:
                failure = error
                self._drop_session()
        raise SignerUnusable(f"{self._uri} does not sign: {failure}") from failure

    def _prepare(self, message: bytes) -> bytes:
        if self._given == "message":
            return message
        digest = self.algorithm.hash.digest(message)
        if self._given == "digest":
            return digest
        return der.sequence(self.algorithm.hash.algorithm_identifier_with_null, der.octet_string(digest))

    def _verified(self, signature: bytes, message: bytes) -> bytes:
        try:
            verify(self.public_key, self.algorithm.hash, signature, message, pss=self.algorithm.pss)
        except InvalidSignature:
            raise SignerUnusable(f"{self._uri} gave a signature that its public key does not verify") from None
        return signature

    def _encode(self, raw: bytes) -> bytes:
        if self._key_type != cryptoki.CKK_EC:
            return raw
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    def _open(self, generation: int) -> tuple[int, int]:
        """A session of this thread, logged in, and the key in it."""
        session = self._token.open_session()
        try:
            key = self._token.private_key(session)
        except BaseException:
            self._token.close_session(session)
            raise
        self._held.session, self._held.key, self._held.generation = session, key, generation
        return session, key

    def _drop_session(self) -> None:
        session, self._held.session = self._held.session, None
        if session is not None:
            with self._library.in_use() as generation:
                if generation == self._held.generation:
                    self._token.close_session(session)


def _mechanism(uri: PKCS11URI, key_type: int) -> tuple[Mechanism, Given]:
    """The mechanism, and what it wants to be given: the usual one unless the URI says otherwise."""
    number, given = _MECHANISMS.get(key_type, (-1, None))
    if uri.pss:
        number, given = cryptoki.CKM_RSA_PKCS_PSS, "digest"
    number, given = number if uri.mechanism < 0 else uri.mechanism, uri.given or given
    if number < 0 or given is None:
        raise ConfigError(
            f"the key {uri} is of PKCS#11 key type {key_type:#x}, which is not known here: add x-mechanism=NUMBER and "
            f"x-input={'|'.join(pkcs11_uri.GIVEN)}, or use RSA, EC or Ed25519"
        )
    return Mechanism(number, cryptoki.pss_sha256() if uri.pss else None), given
