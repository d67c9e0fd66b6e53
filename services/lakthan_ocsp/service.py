"""The way of one request: its octets in, an `Answer` out; between them the cache, the store and a key.

It decides nothing that the core could decide, and turns no failure into octets: `RequestError` and the errors of
`lakthan.errors` go up to the HTTP edge, which knows the protocol's word for each.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import StoreUnavailable
from lakthan.store.records import CertStatus, StatusRecord
from lakthan_ocsp import responder
from lakthan_ocsp.cache import Answer, AnswerCache, Certificate
from lakthan_ocsp.directory import Directory, NotEntitled
from lakthan_ocsp.syntax import CertStatusChoice, OCSPRequest, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from lakthan.store.status import StatusReader
    from lakthan_ocsp.directory import Entitled
    from lakthan_ocsp.metrics import OCSPMetrics

_MAX_CERT_IDS = 50
_ATTEMPTS = 3


class OCSPService:
    """One process's responder.

    `directory` is replaced whole when the authorities change. `changes_heard` says whether changes reach this process
    as they happen; while they do not, every answer comes from the store.
    """

    def __init__(
        self,
        directory: Directory,
        statuses: StatusReader,
        cache: AnswerCache,
        metrics: OCSPMetrics,
        *,
        changes_heard: Callable[[], bool],
    ) -> None:
        self.directory = directory
        self._statuses = statuses
        self._cache = cache
        self._metrics = metrics
        self._changes_heard = changes_heard

    async def answer(self, encoded: bytes, now: datetime) -> Answer:
        """The answer to an encoded OCSPRequest at the instant `now`.

        Raises `RequestError` when the request gets none, `StoreUnavailable` and `SignerBusy` when it may come again,
        `SignerUnusable` when the responder cannot speak.
        """
        answer = self._cache.get(encoded, now) if self._changes_heard() else None
        if answer is not None:
            self._metrics.answers_cached.inc()
        else:
            answer = await self._answer(encoded, now)
            self._metrics.answers_signed.inc()
        for outcome in answer.outcomes:
            self._metrics.cert_statuses[outcome].inc()
        return answer

    async def _answer(self, encoded: bytes, now: datetime) -> Answer:
        request = parse_request(encoded, max_cert_ids=_MAX_CERT_IDS)
        self._metrics.count_cert_ids(request.cert_ids)
        if request.nonce is not None:
            self._metrics.nonces.inc()
        try:
            entitled = self.directory.entitled(request.cert_ids)
        except NotEntitled as error:
            self._metrics.unauthorized[error.cause].inc()
            raise
        certificates = [Certificate(entitled.authority_id, cert_id.serial_number) for cert_id in request.cert_ids]
        for _ in range(_ATTEMPTS):
            mark = self._cache.mark()
            answer = await self._sign(request, entitled, await self._look_up(certificates), now)
            if self._cache.unchanged_since(mark, certificates):
                break
        else:
            raise StoreUnavailable("the status changed again and again while it was being answered")
        if request.nonce is None and len(certificates) == 1 and answer.authoritative and self._changes_heard():
            self._cache.put(encoded, certificates[0], answer)
            self._metrics.cached_answers.set(len(self._cache))
        return answer

    async def _look_up(self, certificates: list[Certificate]) -> list[StatusRecord | None]:
        started = perf_counter()
        if len(certificates) == 1:
            records = [await self._statuses.find(*certificates[0])]
        else:
            records = await asyncio.gather(*(self._statuses.find(*certificate) for certificate in certificates))
        self._metrics.lookup_seconds.observe(perf_counter() - started)
        return records

    async def _sign(
        self, request: OCSPRequest, entitled: Entitled, records: list[StatusRecord | None], now: datetime
    ) -> Answer:
        speaker = entitled.responder
        this_update, next_update = speaker.freshness.span(now)
        next_update = min([next_update, *_ends_after(this_update, records)])
        choices = [_choice(record) for record in records]
        draft = speaker.template.draft(
            [(cert_id, _cert_status(record)) for cert_id, record in zip(request.cert_ids, records, strict=True)],
            this_update=this_update,
            next_update=next_update,
            nonce=request.nonce,
        )
        started = perf_counter()
        signature = await speaker.identity.signer.sign(draft.tbs)
        self._metrics.sign_seconds.labels(speaker.authority).observe(perf_counter() - started)
        body = draft.seal(signature)
        return Answer(
            body,
            this_update,
            next_update,
            min(this_update + speaker.freshness.refresh, next_update),
            speaker.freshness,
            tuple(choice.value for choice in choices),
            authoritative=CertStatusChoice.UNKNOWN not in choices,
            etag=f'"{HashAlgorithm.SHA_256.digest(body).hex()}"' if request.nonce is None else "",
        )


def _ends_after(instant: datetime, records: list[StatusRecord | None]) -> list[datetime]:
    # No answer outlives a certificate that is in force: a validator that has nothing but the answer kept with an old
    # signature goes back to the last instant of the answer, and there the certificate has to be in force as well
    # (the time sliding of ETSI EN 319 102-1 §5.6.2.2, as pyHanko does it).
    ends = [record.not_after for record in records if record is not None and record.not_after is not None]
    return [end for end in ends if end > instant]


def _choice(record: StatusRecord | None) -> CertStatusChoice:
    if record is None:
        return CertStatusChoice.UNKNOWN
    return CertStatusChoice.GOOD if record.cert_status is CertStatus.GOOD else CertStatusChoice.REVOKED


def _cert_status(record: StatusRecord | None) -> bytes:
    if record is None:
        return responder.UNKNOWN
    if record.cert_status is CertStatus.GOOD:
        return responder.GOOD
    if record.revocation_time is None:
        raise AssertionError("a revoked record without its time: the schema forbids it")
    return responder.revoked(record.revocation_time, record.revocation_reason)
