"""Private keys in an HSM, through PKCS#11.

Promises:

- One login in a process for each token, whatever the number of keys and sessions in it. A PIN that the token refused
  is never tried again by this process: three wrong ones lock many tokens.
- Vendor calls run on the signer's own threads, each with a session of its own. The event loop never waits for a device.
- At most `x-sessions` signatures are under way and `x-waiting` wait; the next caller gets `SignerBusy` at once.
- A lost session, a token that was taken out, a library that wants to be started again: the next signature finds the key
  anew. While that fails, every caller gets `SignerUnusable` at once, and the device is asked once a second, not more.

Refuses to know: what is signed, and certificates. Nothing here is called before a fork: services start their workers as
fresh processes.

Trusted: the vendor's library, which lives in this process and sees the PIN.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from lakthan import der
from lakthan.algorithms import SignatureAlgorithm, signature_algorithm_of
from lakthan.errors import ConfigError, SignerBusy, SignerUnusable
from lakthan.keys import cryptoki, pkcs11_uri
from lakthan.keys.cryptoki import CryptokiError
from lakthan.keys.pkcs11_token import Away, Token

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.config import KeyURI
    from lakthan.keys.pkcs11_uri import PKCS11URI

# RSA-4096; an ECDSA or EdDSA signature is shorter.
_LONGEST_SIGNATURE = 512
_MECHANISMS = {
    cryptoki.CKK_RSA: cryptoki.CKM_RSA_PKCS,
    cryptoki.CKK_EC: cryptoki.CKM_ECDSA,
    cryptoki.CKK_EC_EDWARDS: cryptoki.CKM_EDDSA,
}
_CURVES: dict[bytes, ec.EllipticCurve] = {
    der.object_identifier("1.2.840.10045.3.1.7"): ec.SECP256R1(),
    der.object_identifier("1.3.132.0.34"): ec.SECP384R1(),
    der.object_identifier("1.3.132.0.35"): ec.SECP521R1(),
}


class _Held(threading.local):
    """What a thread holds: a session, and the key's handle in it, of one generation of the library."""

    session: int | None = None
    key = 0
    generation = -1


class PKCS11Signer:
    """One key of one token."""

    def __init__(self, uri: PKCS11URI) -> None:
        self._uri = uri
        self._token = Token(uri)
        self._library = self._token.library
        self._held = _Held()
        self._under_way = 0
        try:
            key_type, self.public_key = self._first_look()
        except CryptokiError as error:
            raise ConfigError(f"the key {uri} cannot be opened: {error}") from error
        except (SignerUnusable, Away) as error:
            raise ConfigError(str(error)) from error
        self.algorithm: SignatureAlgorithm = signature_algorithm_of(self.public_key)
        self._key_type = key_type
        self._mechanism = _MECHANISMS[key_type] if uri.mechanism < 0 else uri.mechanism
        self._executor = ThreadPoolExecutor(uri.sessions, thread_name_prefix="pkcs11")

    @classmethod
    def load(cls, key: KeyURI) -> PKCS11Signer:
        """Open the key that the URI names, log in, find it. Raises `ConfigError`."""
        return cls(pkcs11_uri.parse(key))

    def _first_look(self) -> tuple[int, PublicKeyTypes]:
        """Log in and find the key: its type and its public half. The caller's session holds the login from now on."""
        self._token.look()
        with self._library.in_use() as generation:
            session, key = self._open(generation)
            attribute = self._library.cryptoki.attribute(session, key, cryptoki.CKA_KEY_TYPE)
            key_type = int.from_bytes(attribute, "little")
            return key_type, _public_key(self._token, session, key, key_type)

    async def sign(self, message: bytes) -> bytes:
        """See `Signer.sign`."""
        if self._under_way >= self._uri.sessions + self._uri.waiting:
            raise SignerBusy(f"{self._under_way} signatures wait for {self._uri}")
        self._under_way += 1
        try:
            signing = asyncio.get_running_loop().run_in_executor(self._executor, self._sign, message)
            signing.add_done_callback(self._done)
        except BaseException:
            self._under_way -= 1
            raise
        return await asyncio.shield(signing)

    def _done(self, signing: asyncio.Future[bytes]) -> None:
        # Counted when the device is done, not when the caller has left: a thread is busy until then.
        self._under_way -= 1
        if not signing.cancelled():
            signing.exception()  # its caller may have left

    async def aclose(self) -> None:
        """See `Signer.aclose`. Sessions are left to the end of the process: other signers share their login."""
        self._executor.shutdown(wait=False, cancel_futures=True)

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
                    return self._encode(raw)
            except (CryptokiError, Away) as error:
                failure = error
                self._drop_session()
        raise SignerUnusable(f"{self._uri} does not sign: {failure}") from failure

    def _prepare(self, message: bytes) -> bytes:
        """What the mechanism wants: the digest, its DigestInfo (RFC 8017 §9.2), or the message itself."""
        if self._key_type == cryptoki.CKK_EC_EDWARDS:
            return message
        digest = self.algorithm.hash.digest(message)
        if self._key_type == cryptoki.CKK_EC:
            return digest
        return der.sequence(self.algorithm.hash.algorithm_identifier_with_null, der.octet_string(digest))

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


def _public_key(token: Token, session: int, key: int, key_type: int) -> PublicKeyTypes:
    """The public half: from the public key object beside the private one, or from the private RSA key itself."""
    library, uri = token.library.cryptoki, token.uri
    if key_type not in _MECHANISMS:
        raise ConfigError(f"the key {uri} is of PKCS#11 key type {key_type:#x}: use RSA, EC or Ed25519")
    found = token.find(session, cryptoki.CKO_PUBLIC_KEY)
    if key_type == cryptoki.CKK_RSA:
        holder = found[0] if found else key
        modulus, exponent = (
            int.from_bytes(library.attribute(session, holder, kind), "big")
            for kind in (cryptoki.CKA_MODULUS, cryptoki.CKA_PUBLIC_EXPONENT)
        )
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    if not found:
        raise ConfigError(f"the key {uri} has no public key object beside it: import that one too")
    point = library.attribute(session, found[0], cryptoki.CKA_EC_POINT)
    with suppress(der.DERError):  # the standard wraps it into an OCTET STRING, some tokens do not
        reader = der.Reader(point)
        unwrapped = reader.content(der.OCTET_STRING)
        reader.finish()
        point = unwrapped
    try:
        if key_type == cryptoki.CKK_EC_EDWARDS:
            return ed25519.Ed25519PublicKey.from_public_bytes(point)
        curve = _CURVES.get(library.attribute(session, found[0], cryptoki.CKA_EC_PARAMS))
        if curve is None:
            raise ConfigError(f"the key {uri} lies on an unknown curve: use P-256 or P-384")
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except (ValueError, InvalidKey) as error:
        raise ConfigError(f"the public key of {uri} cannot be read: {error}") from error
