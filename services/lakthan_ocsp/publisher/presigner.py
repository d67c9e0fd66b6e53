"""The loop of one authority: look what is wanted, sign it, put it on record.

Promises: what comes on record was signed by a key that may speak for the authority, at an instant and for a span that
its profile allows, about the status that is on record; a signature that a device made has been verified first. The
instant is that of a clock that nothing spoke against. A key that is busy or fails is left alone for a while, what it
did not sign is kept, and nothing takes its place. A change of a status interrupts whatever else is being signed.

Refuses to know: who reads the answers. It is the only one at work for its authority (`lakthan.store.leadership`).

Trusted: the store says what the statuses are.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature

from lakthan.errors import ConfigError, LakthanError, SignerBusy, SignerUnusable
from lakthan.keys import sign_at_once
from lakthan.keys.verification import verify
from lakthan.store.changes import ChangeRefused
from lakthan.store.presigned import HASHES, Presigned, PresignedAnswer
from lakthan.store.status import AuthorityReader
from lakthan.telemetry.logs import log
from lakthan_ocsp.governor import SUSPENSION, PolicyViolation, SourceExpired
from lakthan_ocsp.publisher.schedule import Clock, due_after, shortfall, signatures_per_second, spread_of
from lakthan_ocsp.publisher.voice import Voice
from lakthan_ocsp.publisher.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import asyncpg

    from lakthan.algorithms import HashAlgorithm
    from lakthan.config import PresignConfig
    from lakthan.store.presigned import Wanted
    from lakthan.store.records import AuthorityRecord
    from lakthan_ocsp.directory import Responder
    from lakthan_ocsp.publisher.metrics import PublisherMetrics
    from lakthan_ocsp.publisher.schedule import Pace
    from lakthan_ocsp.publisher.voice import Statement
    from lakthan_ocsp.publisher.work import Cause

    Speaking = Callable[[Sequence[AuthorityRecord], datetime], Responder]

_MOST_AT_ONCE = 200
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


class ClockDoubted(LakthanError):
    """Nothing may be signed by this machine's clock: another publisher may have a better one."""


def hashes_of(config: PresignConfig) -> tuple[HashAlgorithm, ...]:
    """Raises `ConfigError` for what is no hash of a CertID, and for settings that mean nothing here."""
    unknown = [label for label in config.hashes if label not in HASHES]
    if unknown or len(set(config.hashes)) != len(config.hashes):
        raise ConfigError(f"publisher of {config.authority!r}: hashes are some of {', '.join(HASHES)}, each once")
    for name, usual in (("dual_hash", False), ("signed_requests", "ignore"), ("answers", "signed")):
        if getattr(config, name) != usual:
            raise ConfigError(f"publisher of {config.authority!r}: {name} is for responders; remove it")
    return tuple(HASHES[label] for label in config.hashes)


class Presigner:
    """Signs ahead for one authority. `speaking` gives the responder that speaks for it now, or raises `ConfigError`.
    `problem`: what keeps it from signing, '' when nothing does.
    """

    def __init__(
        self,
        config: PresignConfig,
        speaking: Speaking,
        pace: Pace,
        metrics: PublisherMetrics,
        clock: Clock,
        *,
        look_every: timedelta = timedelta(seconds=0.25),
    ) -> None:
        self._config = config
        self._hashes = hashes_of(config)
        self._speaking = speaking
        self._pace = pace
        self._metrics = metrics
        self._clock = clock
        self._look_every = look_every
        rate = config.signatures_per_second
        self._at_once = _MOST_AT_ONCE if rate is None else max(1, min(_MOST_AT_ONCE, int(rate)))
        self._places = asyncio.Semaphore(config.in_flight)
        self._wake = asyncio.Event()
        self._keys_changed = False
        self._voice: Voice | None = None
        self._spread = 1.0
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self.problem = ""

    def wake(self, *_: object) -> None:
        """Something has changed: look now."""
        self._wake.set()

    def keys_changed(self) -> None:
        """Another key may sign from now on."""
        self._keys_changed = True
        self._wake.set()

    async def run(self, connection: asyncpg.Connection, authority_id: int) -> None:
        """Sign ahead for as long as the connection lasts. Raises `StoreUnavailable`, and `ClockDoubted` as soon as the
        clock has a problem: what is to be signed, and when, was reckoned by it.
        """
        store, authorities = Presigned(connection), AuthorityReader(connection)
        work = await self._begin(store, authorities, authority_id)
        looked_at = None
        while True:
            now = self._clock.now()
            if problem := self._clock.problem():
                self._say(problem)
                raise ClockDoubted(problem)
            if looked_at is None or self._wake.is_set() or now >= looked_at + self._look_every:
                self._wake.clear()
                looked_at = now
                if await work.look(now) or self._keys_changed:
                    self._keys_changed = False
                    work.forget()
                    await self._load(authorities, authority_id, work)
                    work.sweep(now)
                self._show(work, now)
            if self._voice is None:
                await self._clock.sleep(1.0, self._wake)
                continue
            cause, wanted = await work.next(now, self._at_once)
            if wanted:
                await self._sign_all(store, work, cause, wanted)
            elif work.idle:
                await self._clock.sleep(self._look_every.total_seconds(), self._wake)

    async def _begin(self, store: Presigned, authorities: AuthorityReader, authority_id: int) -> Work:
        while True:
            self._wake.clear()
            work = Work(store, authority_id, self._hashes, reserve=timedelta(0), look_every=self._look_every)
            await self._load(authorities, authority_id, work)
            if self._voice is not None:
                try:
                    keep_expired = self._voice.responder.profile.keep_expired
                    await store.register(authority_id, self._hashes, keep_expired=keep_expired)
                except ChangeRefused as error:
                    self._say(str(error))
                else:
                    await work.begin(self._clock.now())
                    return work
            await self._clock.sleep(1.0, self._wake)

    async def _load(self, authorities: AuthorityReader, authority_id: int, work: Work) -> None:
        """Take over the authority as it is now, and who speaks for it."""
        records = await authorities.load()
        self._voice = None
        try:
            [authority] = [record for record in records if record.id == authority_id]
            self._voice = Voice(authority, self._speaking([authority], self._clock.now()), self._hashes)
        except ConfigError as error:
            self._say(str(error))
            return
        work.all_revoked = self._voice.all_revoked
        governor = self._voice.responder.governor
        work.reserve = (governor.validity - governor.refresh) / 2
        self._metrics.responder_not_after.labels(self._config.authority).set(
            self._voice.responder.identity.view.not_after.timestamp()
        )
        self._say("")

    async def _sign_all(self, store: Presigned, work: Work, cause: Cause, wanted: Sequence[Wanted]) -> None:
        """Sign what is wanted and put it on record; what could not be signed stays work."""
        assert self._voice is not None  # noqa: S101 - `run` has looked
        voice, since = self._voice, work.named_since
        nothing: list[tuple[bytes, HashAlgorithm]] = []
        asked: list[Wanted] = []
        signing: list[asyncio.Future[PresignedAnswer]] = []
        failed: list[Wanted] = []
        trouble: Exception | None = None
        for number, each in enumerate(wanted):
            now = self._clock.now()
            if self._clock.problem() or (cause != "changed" and self._wake.is_set()):
                work.again(cause, wanted[number:], since)
                break
            try:
                statement = _statement(voice, each, now)
            except (PolicyViolation, SourceExpired) as error:
                trouble = error
                failed += wanted[number:]
                break
            if statement is None:
                nothing.append((each.record.serial_number, each.cert_id_hash))
            elif cause != "missing" or each.next_update is None or each.next_update < statement.span.next_update:
                await self._pace.turn()
                asked.append(each)
                signing.append(await self._sign(voice.responder, each, statement, now))
        results = await asyncio.gather(*signing, return_exceptions=True)
        answers: list[PresignedAnswer] = []
        for each, result in zip(asked, results, strict=True):
            if isinstance(result, PresignedAnswer):
                answers.append(result)
            elif isinstance(result, SignerBusy | SignerUnusable):
                trouble = result
                failed.append(each)
            else:
                raise result
        await self._put(store, voice, cause, answers, nothing)
        if cause in {"changed", "issued"} and answers:
            self._metrics.change_seconds.observe(max(0.0, (self._clock.now() - since).total_seconds()))
        if trouble is not None:
            work.again(cause, failed, since)
            await self._pause(trouble, len(failed))
        elif answers:
            self._say("")

    async def _put(
        self,
        store: Presigned,
        voice: Voice,
        cause: Cause,
        answers: list[PresignedAnswer],
        nothing: list[tuple[bytes, HashAlgorithm]],
    ) -> None:
        if nothing:
            await store.drop(voice.authority.id, nothing)
        if answers:
            overtaken = await store.put(voice.authority.id, answers)
            self._metrics.published.labels(self._config.authority, cause).inc(len(answers) - overtaken)
            self._metrics.overtaken.labels(self._config.authority).inc(overtaken)

    async def _sign(
        self, responder: Responder, wanted: Wanted, statement: Statement, now: datetime
    ) -> asyncio.Future[PresignedAnswer]:
        """One answer, signed or about to be."""

        def answer(signature: bytes) -> PresignedAnswer:
            span, record = statement.span, wanted.record
            due_at = due_after(
                now,
                responder.governor.refresh,
                (record.serial_number, wanted.cert_id_hash),
                due_at=wanted.due_at,
                spread=self._spread,
            )
            return PresignedAnswer(
                record.serial_number,
                wanted.cert_id_hash,
                statement.cert_status,
                record.version,
                span.produced_at,
                span.this_update,
                span.next_update,
                min(due_at, span.next_update),
                statement.draft.seal(signature),
            )

        async def sign() -> PresignedAnswer:
            try:
                return answer(await _verified(responder, statement.draft.tbs))
            finally:
                self._places.release()

        at_once = sign_at_once(responder.identity.signer)
        if at_once is not None:
            done: asyncio.Future[PresignedAnswer] = asyncio.get_running_loop().create_future()
            try:
                done.set_result(answer(at_once(statement.draft.tbs)))
            except (SignerBusy, SignerUnusable) as error:
                done.set_exception(error)
            return done
        await self._places.acquire()
        return asyncio.ensure_future(sign())

    async def _pause(self, trouble: Exception, answers: int) -> None:
        """The key, or what the statuses come from, is not as it must be: wait, each time longer."""
        self._metrics.failed.labels(self._config.authority).inc(answers)
        self._say(str(trouble))
        await self._clock.sleep(self._pause_seconds)
        self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _say(self, problem: str) -> None:
        if not problem:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.error("answers are not signed ahead", authority=self._config.authority, problem=problem)
            else:
                log.info("answers are signed ahead", authority=self._config.authority)
        self._metrics.working.labels(self._config.authority).set(not problem)

    def _show(self, work: Work, now: datetime) -> None:
        """Bring the metrics up to date, and say once for each complete look whether the key is fast enough."""
        name = self._config.authority
        behind = 0.0 if work.longest_due is None else max(0.0, (now - work.longest_due).total_seconds())
        self._metrics.behind_seconds.labels(name).set(behind)
        if work.certificates is None or self._voice is None:
            return
        refresh, rate = self._voice.responder.governor.refresh, self._config.signatures_per_second
        certificates, work.certificates = work.certificates, None
        self._metrics.certificates.labels(name).set(certificates)
        needed = signatures_per_second(certificates, len(self._hashes), refresh)
        self._spread = spread_of(needed, rate)
        self._metrics.needed_per_second.labels(name).set(needed)
        problem = shortfall(certificates, len(self._hashes), refresh, rate)
        self._metrics.short.labels(name).set(bool(problem))
        if problem:
            log.error("answers will expire", authority=name, problem=problem)


def _statement(voice: Voice, wanted: Wanted, now: datetime) -> Statement | None:
    """None where nothing may be said: the certificate has expired, or is held where that must not be."""
    if wanted.cert_id_hash not in voice.hashes:  # signed by an earlier configuration
        return None
    try:
        return voice.statement(wanted.record, wanted.cert_id_hash, now)
    except PolicyViolation as error:
        if error.rule == SUSPENSION:
            return None
        raise


async def _verified(responder: Responder, message: bytes) -> bytes:
    """A signature of the device, which is believed only when it verifies."""
    signer, view = responder.identity.signer, responder.identity.view
    signature = await signer.sign(message)
    algorithm = signer.algorithm
    try:
        verify(view.certificate.public_key(), algorithm.hash, signature, message, pss=algorithm.pss)
    except InvalidSignature as error:
        raise SignerUnusable(f"the key of {view.name} made a signature that does not verify") from error
    return signature
