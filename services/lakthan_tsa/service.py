"""The way of one request: its octets in, a TimeStampResp out; between them the clock, the key and the record.

Promises: a token leaves only after it was read again (`self_check`), and after its record is durable. The checks stand
in the order of what they cost and whose fault it is: the request, the clock, the unit, the signature, the record.

There are two ways through the same steps. `begin` needs no task, and those who wait hear of the commit that many tokens
share. The tokens of one turn of the event loop are made together, step by step: one look at the clock, all drafts, all
signatures, all checks, one record; that keeps what each step needs in the processor's caches. When more have asked than
go together, sources take turns, and who comes meanwhile waits for one turn, not for all. A slower key signs in a thread
meanwhile, and those whose signatures come back together go on together. `answer` waits for everything: keys in
devices, a new epoch of serial numbers, a unit that was frozen in this very moment.

It turns no failure into octets: `Rejection` and the errors of `lakthan.errors` go up to the HTTP edge, which knows the
protocol's word for each.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import SignerUnusable, StoreUnavailable, TimeNotAvailable
from lakthan.keys import sign_at_once, sign_later
from lakthan.keys.line import Turns, asker
from lakthan.store.records import TokenRecord
from lakthan.store.tokens import DuplicateSerial, TSUFrozen
from lakthan.telemetry.logs import log
from lakthan_tsa.authority import draft
from lakthan_tsa.in_hand import Asked, AtWork, Choice, NotTogether, Signed, Unsigned
from lakthan_tsa.reading import RequestReader
from lakthan_tsa.self_check import SelfCheck
from lakthan_tsa.serials import SerialNumbers
from lakthan_tsa.syntax import PKIFailureInfo, Rejection, granted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from lakthan_tsa.clock_guard import ClockGuard
    from lakthan_tsa.in_hand import Told
    from lakthan_tsa.metrics import TSAMetrics
    from lakthan_tsa.profiles import Profile, Unit
    from lakthan_tsa.recorder import Recorder
    from lakthan_tsa.self_check import Mode
    from lakthan_tsa.syntax import TimeStampReq

# Made after one look at the clock: they take three milliseconds or so.
_MOST_TOGETHER = 64
_FREEZES_SECONDS = 1.0
_STUCK = "no key of its units may stamp now"
# Every time round, a unit turned out to be frozen in the very moment of recording.
_ATTEMPTS = 3


class TSAService:
    """All units at work. `lease_epoch` gives a unit, by its name in the records, an epoch for its serial numbers.
    `self_check`: see `lakthan_tsa.self_check`.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        *,
        clock: ClockGuard,
        lease_epoch: Callable[[str], Awaitable[int]],
        recorder: Recorder,
        metrics: TSAMetrics,
        self_check: Mode = "full",
    ) -> None:
        self._profiles = profiles
        self._readers = {
            profile: RequestReader(offered_policies=profile.offered_policies, hashes=profile.hashes)
            for profile in profiles
        }
        self._clock = clock
        self._lease_epoch = lease_epoch
        self._recorder = recorder
        self._metrics = metrics
        self._self_check: Mode = self_check
        self._units: dict[str, Unit] = {}
        self._at_work: dict[Unit, AtWork] = {}
        self._in_process: frozenset[Profile] = frozenset()  # whose every key is
        self._asked: dict[Profile, Turns[Asked]] = {}
        self._signed: dict[Unit, list[tuple[Unsigned, bytes, Told]]] = {}
        metrics.watch_clock(clock)
        self._take_over_units()

    def use_units(self, name: str, units: Sequence[Unit]) -> None:
        """Let these units stamp, the newest first, wherever the unit of that name does; another key list says so. One
        that is new leases its epoch for the first token.
        """
        for profile in self._profiles:
            profile.use_units(name, units)
        self._take_over_units()

    def _take_over_units(self) -> None:
        """Work with the units that the profiles have."""
        self._units = {unit.tsu: unit for profile in self._profiles for unit, _ in profile.stampers}
        self._at_work = {unit: self._at_work.get(unit) or self._put_to_work(unit) for unit in self._units.values()}
        self._in_process = frozenset(
            profile
            for profile in self._profiles
            if profile.stampers and all(self._at_work[unit].signs_in_process for unit, _ in profile.stampers)
        )
        self._metrics.watch_units(self._units.values())
        self._metrics.watch_profiles(self._profiles)

    def _put_to_work(self, unit: Unit) -> AtWork:
        check = SelfCheck(unit.identity, self._self_check)
        self._metrics.watch_check(unit.name, check)
        return AtWork(
            SerialNumbers(partial(self._lease_epoch, unit.tsu)),
            check,
            sign_at_once(unit.identity.signer),
            sign_later(unit.identity.signer),
            self._metrics.sign_seconds.labels(unit.name),
            self._metrics.tokens(unit.name),
        )

    async def open(self) -> None:
        """Lease an epoch for every unit. Raises `StoreUnavailable`."""
        for at_work in self._at_work.values():
            await at_work.serials.open()

    async def answer(self, encoded: bytes, profile: Profile) -> bytes:
        """The TimeStampResp that grants a token for an encoded TimeStampReq (RFC 3161 §2.4.2).

        Raises `Rejection`, `TimeNotAvailable`, `SignerBusy`, `SignerUnusable`, `StoreUnavailable` and
        `DuplicateSerial`; after each of them no token exists for the client.
        """
        request = self._parse(encoded, profile)
        for _ in range(_ATTEMPTS):
            try:
                return granted(await self._stamp(request, profile))
            except TSUFrozen as error:  # perhaps not the unit of this token, but one of the same commit
                self.freeze((error.tsu,))
        raise StoreUnavailable("units were frozen while the token was being recorded")

    def begin(self, encoded: bytes, profile: Profile, told: Told) -> bool:
        """The same without a task: True when `told` will hear of it, after the commit of its token: the TimeStampResp,
        or one of the errors of `answer`, or `NotTogether` or `TSUFrozen`, after which the request goes to `answer`.

        False when something has to be waited for; then nothing has been done, and the request goes to `answer`.
        Raises as `answer` does; then `told` is never called.
        """
        request = self._parse(encoded, profile)
        if profile not in self._in_process:
            return False
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._stamp_some)
        source = asker.get()
        self._asked.setdefault(profile, Turns()).put(source, Asked(request, told, source))
        return True

    def _stamp_some(self) -> None:
        """Stamp for those whose turn it is, and in the next turn of the event loop for those who are left."""
        for profile, turns in list(self._asked.items()):
            together = [turns.take() for _ in range(min(len(turns), _MOST_TOGETHER))]
            if not turns:
                del self._asked[profile]
            try:
                self._stamp_together(profile, together)
            except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear it
                for each in together:
                    _tell(each.told, error)
        if self._asked:
            asyncio.get_running_loop().call_soon(self._stamp_some)

    def _stamp_together(self, profile: Profile, asked: Sequence[Asked]) -> None:
        """After one look at the clock. Raises what hinders all of them, and then nobody was told."""
        choice = self._choose(profile)
        at_work = choice.at_work
        serial_numbers = at_work.serials.take_at_once(choice.reading.gen_time, len(asked))
        if serial_numbers is None or not at_work.signs_in_process:
            raise NotTogether
        unsigned = self._draft([each.request for each in asked], profile, choice, serial_numbers)
        started = perf_counter()
        if at_work.sign_at_once is not None:
            signatures = [at_work.sign_at_once(each.draft.tbs) for each in unsigned]
            at_work.sign_seconds.observe((perf_counter() - started) / len(asked), len(asked))
            self._submit(unsigned, signatures, [each.told for each in asked])
        elif at_work.sign_later is not None:
            for each, (_, told, source) in zip(unsigned, asked, strict=True):
                asker.set(source)  # each in the turn of who asked
                try:
                    at_work.sign_later(each.draft.tbs, partial(self._signed_later, each, told, started))
                except Exception as error:  # noqa: BLE001 - whatever it was, who waits must hear it
                    _tell(told, error)

    def _signed_later(self, unsigned: Unsigned, told: Told, started: float, result: bytes | Exception) -> None:
        """A key that takes its time has done its work, or has not."""
        choice = unsigned.choice
        choice.at_work.sign_seconds.observe(perf_counter() - started)
        if isinstance(result, Exception):
            _tell(told, result)
            return
        if not self._signed:  # more come in this turn
            asyncio.get_running_loop().call_soon(self._submit_signed)
        self._signed.setdefault(choice.unit, []).append((unsigned, result, told))

    def _submit_signed(self) -> None:
        by_unit, self._signed = self._signed, {}
        for signed in by_unit.values():
            self._submit(*zip(*signed, strict=True))

    def _submit(self, unsigned: Sequence[Unsigned], signatures: Sequence[bytes], told: Sequence[Told]) -> None:
        """Look at the tokens of one unit once more, and put those that pass into the next commit."""
        tokens: list[bytes] = []
        records: list[TokenRecord] = []
        waiting: list[Told] = []
        unsynchronised = 0
        started = perf_counter()
        for each, signature, who in zip(unsigned, signatures, told, strict=True):
            try:
                token, record = self._complete(each, signature)
            except Exception as error:  # noqa: BLE001 - whatever it was, who waits must hear it
                _tell(who, error)
            else:
                tokens.append(token)
                records.append(record)
                waiting.append(who)
                unsynchronised += not each.choice.reading.state.holds
        if not records:
            return
        signed = Signed(unsigned[0].choice.at_work, tokens, records, waiting, unsynchronised, started)
        try:
            self._recorder.submit(records, partial(self._recorded, signed))
        except StoreUnavailable as error:
            for who in waiting:
                _tell(who, error)

    def _recorded(self, signed: Signed, error: Exception | None) -> None:
        if error is None:
            self._count(signed.at_work, len(signed.tokens), signed.unsynchronised, signed.signed)
            for token, told in zip(signed.tokens, signed.told, strict=True):
                _tell(told, granted(token))
            return
        if isinstance(error, DuplicateSerial):
            for record in signed.records:
                signed.at_work.serials.abandon(record.serial_number)
        elif isinstance(error, TSUFrozen):
            self.freeze((error.tsu,))
        for told in signed.told:
            _tell(told, error)

    def _parse(self, encoded: bytes, profile: Profile) -> TimeStampReq:
        request = self._readers[profile](encoded)
        if profile.require_nonce and request.nonce is None:
            raise Rejection(PKIFailureInfo.BAD_REQUEST, "a nonce is required here; send the request with one")
        return request

    async def _stamp(self, request: TimeStampReq, profile: Profile) -> bytes:
        """A token that is on record."""
        choice = self._choose(profile)
        serial_number = await choice.at_work.serials.take(choice.reading.gen_time)
        [unsigned] = self._draft([request], profile, choice, [serial_number])
        started = perf_counter()
        signature = await choice.unit.identity.signer.sign(unsigned.draft.tbs)
        signed = perf_counter()
        choice.at_work.sign_seconds.observe(signed - started)
        token, record = self._complete(unsigned, signature)
        try:
            await self._recorder.record(record)
        except DuplicateSerial:
            choice.at_work.serials.abandon(serial_number)
            raise
        self._count(choice.at_work, 1, int(not choice.reading.state.holds), signed)
        return token

    def _choose(self, profile: Profile) -> Choice:
        """Who stamps now: asked for every token, because a key may end, or be frozen, while the service runs."""
        reading = self._clock.read(profile.accuracy)
        stamper = profile.stamper(reading.gen_time)
        if stamper is None:
            raise Rejection(PKIFailureInfo.SYSTEM_FAILURE, "no key may stamp at this time; tell the operator")
        unit, template = stamper
        return Choice(reading, unit, template, self._at_work[unit])

    def _draft(
        self, requests: Sequence[TimeStampReq], profile: Profile, choice: Choice, serial_numbers: Sequence[bytes]
    ) -> list[Unsigned]:
        template, gen_time = choice.template, choice.reading.gen_time
        return [
            Unsigned(
                request,
                profile,
                choice,
                serial_number,
                draft(request, template, serial_number=serial_number, gen_time=gen_time),
            )
            for request, serial_number in zip(requests, serial_numbers, strict=True)
        ]

    def _complete(self, unsigned: Unsigned, signature: bytes) -> tuple[bytes, TokenRecord]:
        """The finished token after the last look, and what is to be recorded of it."""
        request, profile, (reading, unit, template, at_work), serial_number, drafted = unsigned
        token = drafted.seal(signature)
        try:
            at_work.check(
                token, request, policy=template.policy, serial_number=serial_number, gen_time=reading.gen_time
            )
        except SignerUnusable:
            self._metrics.self_check_failures.inc()
            raise
        record = TokenRecord(
            serial_number,
            reading.gen_time,
            profile.policy,
            request.hash_algorithm.label,
            request.hashed_message,
            unit.tsu,
            reading.state.label,
            reading.bound,
            HashAlgorithm.SHA_256.digest(token),
        )
        return token, record

    def _count(self, at_work: AtWork, tokens: int, unsynchronised: int, signed: float) -> None:
        """So many tokens that were signed at this time are on record."""
        at_work.tokens.count += tokens
        self._metrics.record_seconds.observe(perf_counter() - signed, tokens)
        if unsynchronised:
            self._metrics.unsynchronised_tokens.inc(unsynchronised)

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
        """For readiness: what this service needs, and what is wrong with it ('' when nothing is). A profile without a
        key that may stamp is no reason to leave while another one has some.
        """
        problems = {"token log": self._recorder.problem}
        stamps: dict[str, bool] = {}
        for profile in self._profiles:
            name = f"profile {profile.name}"
            try:
                stamps[name] = profile.stamper(self._clock.read(profile.accuracy).gen_time) is not None
            except TimeNotAvailable as error:
                problems[name] = str(error)
        for name, does in stamps.items():
            if does or not any(stamps.values()):
                problems[name] = "" if does else _STUCK
            else:
                problems[f"{name} ({_STUCK})"] = ""
        return problems


def _tell(told: Told, result: bytes | Exception) -> None:
    try:
        told(result)
    except Exception:  # noqa: BLE001 - a defect in one of them must not keep the others waiting
        log.exception("a defect: somebody could not be told of a token")
