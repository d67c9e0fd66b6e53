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
from lakthan_ocsp.cache import Answer, AnswerCache, Certificate
from lakthan_ocsp.directory import NOT_ON_RECORD, Directory, NotEntitled
from lakthan_ocsp.governor import PolicyViolation
from lakthan_ocsp.profiles import NonIssued
from lakthan_ocsp.syntax import CertID, CertStatusChoice, OCSPRequest, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from lakthan.store.records import StatusRecord
    from lakthan.store.status import StatusReader
    from lakthan_ocsp.directory import Entitled
    from lakthan_ocsp.metrics import OCSPMetrics
    from lakthan_ocsp.responder import Issuer

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
        for algorithm in answer.hashes:
            self._metrics.cert_id_hashes[algorithm].inc()
        return answer

    async def _answer(self, encoded: bytes, now: datetime) -> Answer:
        request = parse_request(encoded, max_cert_ids=_MAX_CERT_IDS)
        if request.nonce is not None:
            self._metrics.nonces.inc()
        try:
            answer, certificates = await self._current_answer(request, now)
        except NotEntitled as error:
            self._metrics.unauthorized[error.cause].inc()
            raise
        alone = request.nonce is None and request.signature is None and len(certificates) == 1
        if alone and answer.authoritative and self._changes_heard():
            self._cache.put(encoded, certificates[0], answer)
            self._metrics.cached_answers.set(len(self._cache))
        return answer

    async def _current_answer(self, request: OCSPRequest, now: datetime) -> tuple[Answer, list[Certificate]]:
        """A signed answer that no change overtook while it was made, neither of a certificate nor of its authority."""
        for _ in range(_ATTEMPTS):
            mark = self._cache.mark()
            entitled = self.directory.entitled(request)
            entitled.responder.requestors.check(request.signature, now)
            authority_id = entitled.issuer.authority.id
            certificates = [Certificate(authority_id, cert_id.serial_number) for cert_id in request.cert_ids]
            records = await self._look_up(certificates)
            try:
                answer = await self._sign(request, entitled, records, now)
            except PolicyViolation as error:
                self._metrics.violations.labels(entitled.responder.authority, error.rule).inc()
                raise
            if self._cache.unchanged_since(mark, certificates):
                return answer, certificates
        raise StoreUnavailable("the status changed again and again while it was being answered")

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
        span = speaker.governor.span(now, records, entitled.issuer.authority.crl)
        said = [entitled.statements.of(record, now) for record in records]
        cert_ids, statements = list(request.cert_ids), [each for each in said if each is not None]
        if len(statements) != len(cert_ids):
            raise NotEntitled(NOT_ON_RECORD)
        # A final answer is the same for everybody and for ever (EN 319 411-2 CSS-6.3.10-11).
        nonce = request.nonce if speaker.profile.nonce and not speaker.final else None
        if speaker.dual_hash and len(cert_ids) == 1 and request.nonce is None:
            cert_ids += _other_names(entitled.issuer, cert_ids[0])
            statements *= len(cert_ids)
        draft = speaker.template.draft(
            [
                (cert_id.encoded, statement.cert_status, statement.single_extensions)
                for cert_id, statement in zip(cert_ids, statements, strict=True)
            ],
            span,
            nonce=nonce,
            extended_revoke=speaker.non_issued is NonIssued.REVOKED,
        )
        started = perf_counter()
        signature = await speaker.identity.signer.sign(draft.tbs)
        self._metrics.sign_seconds.labels(speaker.authority).observe(perf_counter() - started)
        body = draft.seal(signature)
        return Answer(
            body,
            span,
            speaker.governor,
            tuple(statement.choice.value for statement in statements),
            tuple(cert_id.hash_algorithm for cert_id in request.cert_ids),
            authoritative=all(statement.choice is not CertStatusChoice.UNKNOWN for statement in statements),
            etag=f'"{HashAlgorithm.SHA_256.digest(body).hex()}"' if nonce is None else "",
        )


def _other_names(issuer: Issuer, asked: CertID) -> list[CertID]:
    """RFC 9919 §3.2.1: with a SHA-1 CertID the same in SHA-256, and the other way round."""
    other = {HashAlgorithm.SHA_1: HashAlgorithm.SHA_256, HashAlgorithm.SHA_256: HashAlgorithm.SHA_1}
    if asked.hash_algorithm not in other:
        return []
    return [issuer.cert_id(other[asked.hash_algorithm], asked.serial_number)]
