"""The way of one request: its octets in, a TimeStampResp out; between them the clock, the key and the record.

Promises: a token leaves only after it was read again and verified (`self_check`), and after its record is durable. The
checks stand in the order of what they cost and whose fault it is: the request, the clock, the unit, the signature, the
record.

It turns no failure into octets: `Rejection` and the errors of `lakthan.errors` go up to the HTTP edge, which knows the
protocol's word for each.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import SignerUnusable, StoreUnavailable, TimeNotAvailable
from lakthan.store.records import TokenRecord
from lakthan.store.tokens import DuplicateSerial, TSUFrozen
from lakthan.telemetry.logs import log
from lakthan_tsa.authority import draft
from lakthan_tsa.self_check import SelfCheck
from lakthan_tsa.serials import SerialNumbers
from lakthan_tsa.syntax import PKIFailureInfo, Rejection, granted, parse_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from prometheus_client import Counter, Histogram

    from lakthan_tsa.clock_guard import ClockGuard
    from lakthan_tsa.metrics import TSAMetrics
    from lakthan_tsa.profiles import Profile
    from lakthan_tsa.recorder import Recorder
    from lakthan_tsa.syntax import TimeStampReq

_FREEZES_SECONDS = 1.0
# Every time round, a unit turned out to be frozen in the very moment of recording.
_ATTEMPTS = 3


class _AtWork(NamedTuple):
    """What a unit needs besides its key."""

    serials: SerialNumbers
    check: SelfCheck
    sign_seconds: Histogram
    tokens: Counter


class TSAService:
    """All units at work. `lease_epoch` gives a unit, by its name in the records, an epoch for its serial numbers."""

    def __init__(
        self,
        profiles: Sequence[Profile],
        *,
        clock: ClockGuard,
        lease_epoch: Callable[[str], Awaitable[int]],
        recorder: Recorder,
        metrics: TSAMetrics,
        self_check: bool = True,
    ) -> None:
        self._profiles = profiles
        self._units = {unit.tsu: unit for profile in profiles for unit, _ in profile.stampers}
        self._at_work = {
            unit: _AtWork(
                SerialNumbers(partial(lease_epoch, unit.tsu)),
                SelfCheck(unit.identity),
                metrics.sign_seconds.labels(unit.name),
                metrics.tokens.labels(unit.name),
            )
            for unit in self._units.values()
        }
        self._clock = clock
        self._recorder = recorder
        self._metrics = metrics
        self._self_check = self_check
        metrics.watch_clock(clock)
        metrics.watch_units(self._units.values())
        metrics.watch_profiles(profiles)

    async def open(self) -> None:
        """Lease an epoch for every unit. Raises `StoreUnavailable`."""
        for at_work in self._at_work.values():
            await at_work.serials.open()

    async def answer(self, encoded: bytes, profile: Profile) -> bytes:
        """The TimeStampResp that grants a token for an encoded TimeStampReq (RFC 3161 §2.4.2).

        Raises `Rejection`, `TimeNotAvailable`, `SignerBusy`, `SignerUnusable`, `StoreUnavailable` and
        `DuplicateSerial`; after each of them no token exists for the client.
        """
        request = parse_request(encoded, offered_policies=profile.offered_policies, hashes=profile.hashes)
        if profile.require_nonce and request.nonce is None:
            raise Rejection(PKIFailureInfo.BAD_REQUEST, "a nonce is required here; send the request with one")
        for _ in range(_ATTEMPTS):
            try:
                return granted(await self._stamp(request, profile))
            except TSUFrozen as error:  # perhaps not the unit of this token, but one of the same commit
                self.freeze((error.tsu,))
        raise StoreUnavailable("units were frozen while the token was being recorded")

    async def _stamp(self, request: TimeStampReq, profile: Profile) -> bytes:
        """A token that is on record."""
        reading = self._clock.read(profile.accuracy)
        gen_time = reading.gen_time
        stamper = profile.stamper(gen_time)  # for every token: a key may end, or be frozen, while the service runs
        if stamper is None:
            raise Rejection(PKIFailureInfo.SYSTEM_FAILURE, "no key may stamp at this time; tell the operator")
        unit, template = stamper
        at_work = self._at_work[unit]
        serial_number = await at_work.serials.take(gen_time)
        token_draft = draft(request, template, serial_number=serial_number, gen_time=gen_time)
        started = perf_counter()
        signature = await unit.identity.signer.sign(token_draft.tbs)
        signed = perf_counter()
        token = token_draft.seal(signature)
        if self._self_check:
            try:
                at_work.check(token, request, policy=template.policy, serial_number=serial_number, gen_time=gen_time)
            except SignerUnusable:
                self._metrics.self_check_failures.inc()
                raise
        record = TokenRecord(
            serial_number=serial_number,
            gen_time=gen_time,
            policy=profile.policy,
            hash_algorithm=request.hash_algorithm.label,
            hashed_message=request.hashed_message,
            tsu=unit.tsu,
            clock_state=reading.state.label,
            clock_bound=reading.bound,
            token_sha256=HashAlgorithm.SHA_256.digest(token),
        )
        try:
            await self._recorder.record(record)
        except DuplicateSerial:
            at_work.serials.abandon(serial_number)
            raise
        at_work.sign_seconds.observe(signed - started)
        at_work.tokens.inc()
        self._metrics.record_seconds.observe(perf_counter() - signed)
        if not reading.state.holds:
            self._metrics.unsynchronised_tokens.inc()
        return token

    def freeze(self, tsus: Collection[str]) -> None:
        """These units, by their names in the records, stamp no more. Other authorities' units are passed over."""
        for tsu in tsus:
            unit = self._units.get(tsu)
            if unit is not None and not unit.frozen:
                unit.frozen = True
                log.error("a unit is frozen and stamps no more", unit=unit.name, tsu=tsu)

    async def follow_freezes(self, frozen: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Ask every second which units are frozen, until cancelled.

        This is for readiness, metrics and a smooth change to the successor. It is not what stops a unit: the database
        records nothing of a frozen one, and what is not recorded does not leave.
        """
        while True:
            await asyncio.sleep(_FREEZES_SECONDS)
            try:
                self.freeze(await frozen())
            except StoreUnavailable as error:
                log.warning("whether units are frozen cannot be read now", problem=str(error))

    def problems(self) -> dict[str, str]:
        """For readiness: what this service needs, and what is wrong with it ('' when nothing is)."""
        problems = {"token log": self._recorder.problem}
        for profile in self._profiles:
            try:
                stuck = profile.stamper(self._clock.read(profile.accuracy).gen_time) is None
            except TimeNotAvailable as error:
                problems[f"profile {profile.name}"] = str(error)
            else:
                problems[f"profile {profile.name}"] = "no key of its units may stamp now" if stuck else ""
        return problems
