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
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from lakthan import der
from lakthan.algorithms import SignatureAlgorithm, signature_algorithm_of
from lakthan.errors import ConfigError, SignerBusy, SignerUnusable
from lakthan.keys import cryptoki, pkcs11_uri
from lakthan.keys.cryptoki import Cryptoki, CryptokiError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.config import KeyURI
    from lakthan.keys.pkcs11_uri import PKCS11URI

_SECONDS_BETWEEN_RECOVERIES = 1.0
_RESTART_PATIENCE_SECONDS = 2.0
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


class _Library:
    """A library and everybody who is calling it, so that it can be started again when nobody is."""

    _opened: dict[Path, _Library] = {}  # noqa: RUF012 - a registry, on purpose of the class
    _opening = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.cryptoki = Cryptoki(path)
        self.generation = 0
        self.refused_pins: set[tuple[str, bytes]] = set()
        self.login = threading.Lock()
        self._condition = threading.Condition()
        self._calling = 0
        self._restarting = False
        self._restarted_at = 0.0

    @classmethod
    def open(cls, path: Path) -> _Library:
        """The one of this process."""
        with cls._opening:
            if path not in cls._opened:
                try:
                    cls._opened[path] = cls(path)
                except CryptokiError as error:
                    raise ConfigError(f"the PKCS#11 library {path} cannot be started: {error}") from error
            return cls._opened[path]

    @contextmanager
    def in_use(self) -> Iterator[int]:
        """While this lasts nobody restarts the library. Gives its generation: handles of another one are void."""
        with self._condition:
            self._condition.wait_for(lambda: not self._restarting)
            self._calling += 1
            generation = self.generation
        try:
            yield generation
        finally:
            with self._condition:
                self._calling -= 1
                self._condition.notify_all()

    def restart(self, seen: int, *, at_once: bool = False) -> None:
        """Start the library again, if nobody has since generation `seen`: some find a token that came back only so.

        Raises `SignerUnusable` when that was tried a moment ago (unless `at_once`), or when somebody's call does not
        come back.
        """
        with self._condition:
            if self.generation != seen:
                return
            recently = monotonic() - self._restarted_at < _SECONDS_BETWEEN_RECOVERIES
            if self._restarting or (recently and not at_once):
                raise SignerUnusable("the token is away; it is looked for again every second")
            self._restarting = True
            try:
                if not self._condition.wait_for(lambda: self._calling == 0, _RESTART_PATIENCE_SECONDS):
                    raise SignerUnusable("the token is away, and a call to its library does not come back")
                self._restarted_at = monotonic()
                with suppress(CryptokiError):  # it may know already that it is gone
                    self.cryptoki.finalize()
                self.generation += 1
                self.cryptoki.initialize()
            finally:
                self._restarting = False
                self._condition.notify_all()


class _Away(Exception):
    """The token or the key is not there, perhaps not yet again."""


class _Held(threading.local):
    """What a thread holds: a session, and the key's handle in it, of one generation of the library."""

    session: int | None = None
    key = 0
    generation = -1


class PKCS11Signer:
    """One key of one token."""

    def __init__(self, uri: PKCS11URI) -> None:
        self._uri = uri
        self._library = _Library.open(uri.module_path)
        self._held = _Held()
        self._under_way = 0
        try:
            key_type, self.public_key = self._first_look()
        except CryptokiError as error:
            raise ConfigError(f"the key {_name(uri)} cannot be opened: {error}") from error
        except (SignerUnusable, _Away) as error:
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
        library = self._library.cryptoki
        for attempt in range(2):
            with self._library.in_use() as generation:
                try:
                    session, key = self._open(generation)
                except _Away:
                    if attempt:
                        raise
                else:
                    key_type = int.from_bytes(library.attribute(session, key, cryptoki.CKA_KEY_TYPE), "little")
                    return key_type, _public_key(library, session, key, key_type, self._uri)
            self._library.restart(generation, at_once=True)  # a token that was put in since the library started
        raise AssertionError("unreachable")

    async def sign(self, message: bytes) -> bytes:
        """See `Signer.sign`."""
        if self._under_way >= self._uri.sessions + self._uri.waiting:
            raise SignerBusy(f"{self._under_way} signatures wait for {_name(self._uri)}")
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
            except (CryptokiError, _Away) as error:
                failure = error
                self._drop_session()
        raise SignerUnusable(f"{_name(self._uri)} does not sign: {failure}") from failure

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
        library = self._library.cryptoki
        slot, serial = self._slot()
        session = library.open_session(slot)
        try:
            self._log_in(session, serial)
            key = self._find(session)
        except BaseException:
            with suppress(CryptokiError):
                library.close_session(session)
            raise
        self._held.session, self._held.key, self._held.generation = session, key, generation
        return session, key

    def _slot(self) -> tuple[int, str]:
        """The slot of the one token that the URI describes, and that token's serial number."""
        found = []
        for slot in self._library.cryptoki.slots():
            try:
                info = self._library.cryptoki.token_info(slot)
            except CryptokiError:  # an empty or unreadable slot is not the one
                continue
            said = {
                "token": info.label,
                "serial": info.serial,
                "model": info.model,
                "manufacturer": info.manufacturer,
                "slot-id": str(slot),
            }
            if all(said[name] == value for name, value in self._uri.token.items()):
                found.append((slot, info.serial))
        if len(found) != 1:
            raise _Away(f"{len(found)} tokens are there for {_name(self._uri)}, and one is needed")
        return found[0]

    def _log_in(self, session: int, serial: str) -> None:
        if self._uri.pin_source is None:
            return
        try:
            pin = self._uri.pin_source.read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise SignerUnusable(f"the PIN file {error.filename} cannot be read: {error.strerror}") from error
        with self._library.login:
            if (serial, pin) in self._library.refused_pins:
                raise SignerUnusable("the token refused this PIN, and it is not tried again: correct the PIN file")
            try:
                self._library.cryptoki.login(session, pin)
            except CryptokiError as error:
                if error.value == cryptoki.CKR_PIN_INCORRECT:
                    self._library.refused_pins.add((serial, pin))
                    raise SignerUnusable(
                        f"the token refuses the PIN of {self._uri.pin_source}; it is not tried again, because a few "
                        "wrong ones lock the token: correct the file"
                    ) from error
                raise

    def _find(self, session: int) -> int:
        found = self._library.cryptoki.find(session, _selection(cryptoki.CKO_PRIVATE_KEY, self._uri))
        if len(found) != 1:
            raise _Away(
                f"{len(found)} private keys are there for {_name(self._uri)}, and one is needed"
                + ("" if found or self._uri.pin_source else "; perhaps it needs a pin-source")
            )
        return found[0]

    def _drop_session(self) -> None:
        session, self._held.session = self._held.session, None
        if session is not None:
            with self._library.in_use() as generation, suppress(CryptokiError):  # most often it is gone already
                if generation == self._held.generation:
                    self._library.cryptoki.close_session(session)


def _selection(object_class: int, uri: PKCS11URI) -> dict[int, bytes]:
    wanted = {cryptoki.CKA_CLASS: cryptoki.number(object_class)}
    if uri.label is not None:
        wanted[cryptoki.CKA_LABEL] = uri.label.encode()
    if uri.identifier is not None:
        wanted[cryptoki.CKA_ID] = uri.identifier
    return wanted


def _public_key(library: Cryptoki, session: int, key: int, key_type: int, uri: PKCS11URI) -> PublicKeyTypes:
    """The public half: from the public key object beside the private one, or from the private RSA key itself."""
    if key_type not in _MECHANISMS:
        raise ConfigError(f"the key {_name(uri)} is of PKCS#11 key type {key_type:#x}: use RSA, EC or Ed25519")
    found = library.find(session, _selection(cryptoki.CKO_PUBLIC_KEY, uri))
    if key_type == cryptoki.CKK_RSA:
        holder = found[0] if found else key
        modulus, exponent = (
            int.from_bytes(library.attribute(session, holder, kind), "big")
            for kind in (cryptoki.CKA_MODULUS, cryptoki.CKA_PUBLIC_EXPONENT)
        )
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    if not found:
        raise ConfigError(f"the key {_name(uri)} has no public key object beside it: import that one too")
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
            raise ConfigError(f"the key {_name(uri)} lies on an unknown curve: use P-256 or P-384")
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except (ValueError, InvalidKey) as error:
        raise ConfigError(f"the public key of {_name(uri)} cannot be read: {error}") from error


def _name(uri: PKCS11URI) -> str:
    which = uri.label if uri.label is not None else (uri.identifier or b"").hex()
    return f"PKCS#11 key {which!r} of token {uri.token.get('token', '?')!r}"
