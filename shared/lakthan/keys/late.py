"""A key that could not be opened when the service started: its HSM or cloud was away, its token or PIN not right yet.

Whoever asks for a signature hears `SignerBusy` (come again later), and nobody else is held up. The key is tried again
after one second, then after two, four and so on up to half a minute, on a thread of its own: to look for a token that
is not there means to start its library again, which other keys in it notice. Before its first signature leaves, it is
proved that it belongs to the certificate.

Refuses to know: why the key is away. A mistake in its URI is no reason to start: that is `ConfigError` at once.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from lakthan.algorithms import SignatureAlgorithm, signature_algorithm_of
from lakthan.errors import LakthanError, SignerUnusable
from lakthan.keys.bounds import Bounds
from lakthan.keys.pss import wants_pss
from lakthan.keys.signer import Signer, open_signer, prove
from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.config import KeyURI

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0


class LateSigner:
    """The signer of `key`, whose certificate names `public_key`, as soon as it can be had. `problem`: why not yet.

    To be made in the event loop that it is used in.
    """

    def __init__(self, key: KeyURI, public_key: PublicKeyTypes, problem: LakthanError) -> None:
        """Raises `ConfigError` for a public key that cannot sign here."""
        self.public_key = public_key
        self.algorithm: SignatureAlgorithm = signature_algorithm_of(public_key, pss=wants_pss(key))
        self._key = key
        self._problem = str(problem)
        self._name = key.uri.partition("?")[0]
        self._bounds = Bounds(self._name, f"the key {self._name}", at_once=1, waiting=0)
        self._bounds.leave_alone(problem)
        self._signer: Signer | None = None
        self._closed = False
        self._trying = asyncio.create_task(self._try())

    async def sign(self, message: bytes) -> bytes:
        """See `Signer.sign`."""
        if self._signer is None:
            if self._closed:
                raise SignerUnusable(f"the key {self._name} was let go of, and signs no more")
            raise self._bounds.busy(f"the key {self._name} could not be opened yet: {self._problem}")
        return await self._signer.sign(message)

    async def aclose(self) -> None:
        """See `Signer.aclose`."""
        self._closed = True
        self._trying.cancel()
        with suppress(asyncio.CancelledError):
            await self._trying
        self._bounds.close()
        if self._signer is not None:
            await self._signer.aclose()

    async def _try(self) -> None:
        # Not in the loop's own threads: a cloud that does not answer takes its time, and there are few of those.
        thread = ThreadPoolExecutor(1, thread_name_prefix="late-key")
        try:
            pause_seconds = _FIRST_PAUSE_SECONDS
            while self._signer is None:
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
                try:
                    self._signer = await self._open(thread)
                except LakthanError as error:
                    if str(error) != self._problem:
                        self._problem = str(error)
                        log.error("a key still cannot be opened", key=self._name, problem=self._problem)
        finally:
            thread.shutdown(wait=False)
        self._bounds.close()  # from now on the key's own
        log.warning("a key that was away at the start signs", key=self._name)

    async def _open(self, thread: ThreadPoolExecutor) -> Signer:
        opening = asyncio.get_running_loop().run_in_executor(thread, open_signer, self._key)
        try:
            signer = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_forget)
            raise
        try:
            await prove(signer, self.public_key)
        except BaseException:
            await signer.aclose()
            raise
        return signer


def _forget(opening: asyncio.Future[Signer]) -> None:
    """The service ends while the key is being opened."""
    if not opening.cancelled():
        opening.exception()
