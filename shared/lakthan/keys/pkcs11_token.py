"""A token: its library in this process, the slot it is in, and the one login.

Trusted: the vendor's library, which lives in this process and sees the PIN.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

from lakthan.errors import KeyAway, SignerUnusable
from lakthan.keys import cryptoki
from lakthan.keys.cryptoki import Cryptoki, CryptokiError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lakthan.keys.pkcs11_uri import PKCS11URI

_SECONDS_BETWEEN_RECOVERIES = 1.0
_RESTART_PATIENCE_SECONDS = 2.0


class Away(Exception):
    """The token or the key is not there, perhaps not yet again."""


class Library:
    """A library and everybody who is calling it, so that it can be started again when nobody is."""

    _opened: dict[Path, Library] = {}  # noqa: RUF012 - a registry, on purpose of the class
    _opening_one = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.cryptoki = Cryptoki(path)
        self.generation = 0
        self.refused_pins: set[tuple[str, bytes]] = set()
        self.login = threading.Lock()
        self.opening = threading.Lock()  # one key after the other: to find a token may mean to start again
        self._condition = threading.Condition()
        self._calling = 0
        self._restarting = False
        self._restarted_at = 0.0

    @classmethod
    def open(cls, path: Path) -> Library:
        """The one of this process."""
        with cls._opening_one:
            if path not in cls._opened:
                try:
                    cls._opened[path] = cls(path)
                except CryptokiError as error:
                    raise KeyAway(f"the PKCS#11 library {path} cannot be started: {error}") from error
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


class Token:
    """The one token that a URI describes."""

    def __init__(self, uri: PKCS11URI) -> None:
        self.uri = uri
        self.library = Library.open(uri.module_path)

    def look(self) -> None:
        """Start the library again if it does not know the token: it may have been put in since. For the beginning."""
        with self.library.in_use() as generation:
            try:
                self._slot()
            except Away:
                pass
            else:
                return
        self.library.restart(generation, at_once=True)

    def open_session(self, *, writing: bool = False) -> int:
        """A session, logged in. Raises `Away`, `SignerUnusable` for a refused PIN, and `CryptokiError`."""
        slot, serial = self._slot()
        session = self.library.cryptoki.open_session(slot, writing=writing)
        try:
            self._log_in(session, serial)
        except BaseException:
            self.close_session(session)
            raise
        return session

    def close_session(self, session: int) -> None:
        """Close it, if it is not gone already."""
        with suppress(CryptokiError):
            self.library.cryptoki.close_session(session)

    def find(self, session: int, object_class: int) -> list[int]:
        """The objects of that class that the URI describes."""
        wanted = {cryptoki.CKA_CLASS: cryptoki.number(object_class)}
        if self.uri.label is not None:
            wanted[cryptoki.CKA_LABEL] = self.uri.label.encode()
        if self.uri.identifier is not None:
            wanted[cryptoki.CKA_ID] = self.uri.identifier
        return self.library.cryptoki.find(session, wanted)

    def private_key(self, session: int) -> int:
        """The one private key that the URI describes. Raises `Away` when there is none, or several."""
        found = self.find(session, cryptoki.CKO_PRIVATE_KEY)
        if len(found) != 1:
            hint = "" if found or self.uri.pin_source else "; perhaps it needs a pin-source"
            raise Away(f"{len(found)} private keys are there for {self.uri}, and one is needed{hint}")
        return found[0]

    def _slot(self) -> tuple[int, str]:
        found = []
        for slot in self.library.cryptoki.slots():
            try:
                info = self.library.cryptoki.token_info(slot)
            except CryptokiError:  # an empty or unreadable slot is not the one
                continue
            said = {
                "token": info.label,
                "serial": info.serial,
                "model": info.model,
                "manufacturer": info.manufacturer,
                "slot-id": str(slot),
            }
            if all(said[name] == value for name, value in self.uri.token.items()):
                found.append((slot, info.serial))
        if len(found) != 1:
            raise Away(f"{len(found)} tokens are there for {self.uri}, and one is needed")
        return found[0]

    def _log_in(self, session: int, serial: str) -> None:
        if self.uri.pin_source is None:
            return
        try:
            pin = self.uri.pin_source.read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise SignerUnusable(f"the PIN file {error.filename} cannot be read: {error.strerror}") from error
        with self.library.login:
            if (serial, pin) in self.library.refused_pins:
                raise SignerUnusable("the token refused this PIN, and it is not tried again: correct the PIN file")
            try:
                self.library.cryptoki.login(session, pin)
            except CryptokiError as error:
                if error.value == cryptoki.CKR_PIN_INCORRECT:
                    self.library.refused_pins.add((serial, pin))
                    raise SignerUnusable(
                        f"the token refuses the PIN of {self.uri.pin_source}; it is not tried again, because a few "
                        "wrong ones lock the token: correct the file"
                    ) from error
                raise
