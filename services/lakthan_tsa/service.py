"""The way of one request: its octets in, a TimeStampResp out; between them the clock, the key and the record.

Promises: a token leaves only after its record is durable. The checks stand in the order of what they cost and whose
fault it is: the request, the clock, the key, the signature, the record.

It turns no failure into octets: `Rejection` and the errors of `lakthan.errors` go up to the HTTP edge, which knows the
protocol's word for each.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import TimeNotAvailable
from lakthan.store.records import TokenRecord
from lakthan.store.tokens import DuplicateSerial
from lakthan_tsa.authority import TokenTemplate, draft
from lakthan_tsa.clock_guard import ClockState
from lakthan_tsa.syntax import PKIFailureInfo, Rejection, granted, parse_request
from lakthan_tsa.unit import check_unit

if TYPE_CHECKING:
    from datetime import timedelta

    from lakthan.identity import Identity
    from lakthan_tsa.clock_guard import ClockGuard, ClockReading
    from lakthan_tsa.metrics import TSAMetrics
    from lakthan_tsa.recorder import Recorder
    from lakthan_tsa.serials import SerialNumbers
    from lakthan_tsa.syntax import TimeStampReq


def name_of_unit(identity: Identity) -> str:
    """What the unit is called in token records: the SHA-256 of its certificate, in hexadecimal. It names one
    certificate for ever, as a subject does not.
    """
    return HashAlgorithm.SHA_256.digest(identity.view.encoded).hex()


class TSAService:
    """One time-stamping unit at work.

    Raises `ConfigError` when its certificate is not fit for it, or `policy` or `accuracy` cannot be.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        policy: str,
        accuracy: timedelta,
        clock: ClockGuard,
        serials: SerialNumbers,
        recorder: Recorder,
        metrics: TSAMetrics,
    ) -> None:
        self.usage = check_unit(identity.view)
        self._template = TokenTemplate(identity, policy=policy, accuracy=accuracy)
        self._offered_policies = frozenset({self._template.policy})
        self._policy = policy
        self._tsu = name_of_unit(identity)
        self._signer = identity.signer
        self._clock = clock
        self._serials = serials
        self._recorder = recorder
        self._metrics = metrics
        metrics.watch_clock(clock)
        metrics.certificate_not_after.set(identity.view.not_after.timestamp())
        metrics.key_not_after.set(self.usage.not_after.timestamp())

    async def answer(self, encoded: bytes) -> bytes:
        """The TimeStampResp that grants a token for an encoded TimeStampReq (RFC 3161 §2.4.2).

        Raises `Rejection`, `TimeNotAvailable`, `SignerBusy`, `SignerUnusable`, `StoreUnavailable` and
        `DuplicateSerial`; after each of them no token exists for the client.
        """
        request = parse_request(encoded, offered_policies=self._offered_policies)
        reading = self._clock.read()
        if not self.usage.covers(reading.gen_time):  # for every token: a key may end while the service runs
            raise Rejection(PKIFailureInfo.SYSTEM_FAILURE, "the key of this unit may not stamp at this time")
        serial_number = await self._serials.take()
        token_draft = draft(request, self._template, serial_number=serial_number, gen_time=reading.gen_time)
        started = perf_counter()
        signature = await self._signer.sign(token_draft.tbs)
        signed = perf_counter()
        token = token_draft.seal(signature)
        await self._record(request, reading, serial_number, token)
        self._metrics.sign_seconds.observe(signed - started)
        self._metrics.record_seconds.observe(perf_counter() - signed)
        if reading.state is not ClockState.IN_SYNC:
            self._metrics.unsynchronised_tokens.inc()
        return granted(token)

    async def _record(self, request: TimeStampReq, reading: ClockReading, serial_number: bytes, token: bytes) -> None:
        record = TokenRecord(
            serial_number=serial_number,
            gen_time=reading.gen_time,
            policy=self._policy,
            hash_algorithm=request.hash_algorithm.label,
            hashed_message=request.hashed_message,
            tsu=self._tsu,
            clock_state=reading.state.label,
            clock_bound=reading.bound,
            token_sha256=HashAlgorithm.SHA_256.digest(token),
        )
        try:
            await self._recorder.record(record)
        except DuplicateSerial:
            self._serials.abandon(serial_number)
            raise

    def problems(self) -> dict[str, str]:
        """For readiness: what this service needs, and what is wrong with it ('' when nothing is)."""
        try:
            now = self._clock.read().gen_time
        except TimeNotAvailable as error:
            return {"clock": str(error), "token log": self._recorder.problem}
        key = "" if self.usage.covers(now) else "the key may not stamp at this time"
        return {"clock": "", "key": key, "token log": self._recorder.problem}
