"""The way of one request: its octets in, an `Answer` out; between them the memory, the store and a key.

What can be said at once is said without giving way to anybody (`cached`, `at_once`): from memory, or signed by a key
that is quicker than a wait. `answer` waits where it must: for the store, in which all questions of one turn of the loop
go together, for a slow key or an HSM, or for an answer to the same question that is already under way.

It decides nothing that the core could decide, and turns no failure into octets: `RequestError` and the errors of
`lakthan.errors` go up to the HTTP edge, which knows the protocol's word for each.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import ShareUsedUp, StoreUnavailable
from lakthan.keys import sign_at_once
from lakthan_ocsp.cache import Answer, AnswerCache, Certificate, Question
from lakthan_ocsp.directory import NOT_ON_RECORD, Directory, NotEntitled, Published
from lakthan_ocsp.governor import PolicyViolation
from lakthan_ocsp.nonces import ReadyAnswers, Terms
from lakthan_ocsp.profiles import NonIssued
from lakthan_ocsp.syntax import CertID, CertStatusChoice, OCSPRequest, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from lakthan.store.records import StatusRecord
    from lakthan.store.status import StatusReader
    from lakthan_ocsp.cache import Mark
    from lakthan_ocsp.directory import Entitled
    from lakthan_ocsp.metrics import OCSPMetrics
    from lakthan_ocsp.published import PublishedAnswers
    from lakthan_ocsp.responder import Draft, Issuer
    from lakthan_ocsp.statuses import Said

    # Who is told of an answer, or of the error instead; neither: see `OCSPService.after_look_up`.
    Tell = Callable[[Answer | None, Exception | None], None]

_MAX_CERT_IDS = 50
_ATTEMPTS = 3
_UNKNOWN = CertStatusChoice.UNKNOWN.value


class OCSPService:
    """One process's responder.

    `directory` is replaced whole when the authorities change. `changes_heard` says whether changes reach this process
    as they happen; while they do not, every answer comes from the store. `may_recall` (None: the same) says whether
    answers of before may still be given; nothing is signed from memory then, and nothing more remembered.
    `authorities_known` says whether the `directory` is young enough to answer by while changes are not heard.

    A `spelling` is what a client sent, a POST's body or a GET's target: what an answer is found again by.
    """

    def __init__(
        self,
        directory: Directory,
        statuses: StatusReader,
        published: PublishedAnswers,
        cache: AnswerCache,
        metrics: OCSPMetrics,
        *,
        changes_heard: Callable[[], bool],
        authorities_known: Callable[[], bool],
        may_recall: Callable[[], bool] | None = None,
    ) -> None:
        self.directory = directory
        self._statuses = statuses
        self._published = published
        self._cache = cache
        self._metrics = metrics
        self._changes_heard = changes_heard
        self._authorities_known = authorities_known
        self._may_recall = may_recall or changes_heard
        self.ready_answers = ReadyAnswers()
        self._under_way: dict[Question, asyncio.Future[Answer]] = {}

    def cached(self, spelling: bytes, now: datetime) -> Answer | None:
        """An answer that was given before, if it may be given again."""
        return self._cache.get(spelling, now) if self._may_recall() else None

    def read(self, encoded: bytes) -> OCSPRequest:
        """The request in these octets. Raises `RequestError`."""
        request = parse_request(encoded, max_cert_ids=_MAX_CERT_IDS)
        if request.nonce is not None:
            self._metrics.nonces += 1
        return request

    def kept(self, request: OCSPRequest, now: datetime) -> Answer:
        """The answer, if it is remembered, for a client that may have no more now. Raises `ShareUsedUp` otherwise, and
        `RequestError` when the request gets none.
        """
        question = _question(request, self._entitled(request, now)) if self._may_recall() else None
        answer = self._cache.find(question, now) if question is not None else None
        if answer is None:
            raise ShareUsedUp("the source of this request has had its share")
        return answer

    def at_once(
        self,
        request: OCSPRequest,
        spelling: bytes,
        now: datetime,
        statuses: list[StatusRecord | None] | None = None,
    ) -> Answer | None:
        """The answer, if nothing has to be waited for. `statuses`: those asked about, if they were read just now.

        Raises what `answer` raises.
        """
        heard = self._changes_heard()
        if not heard and not self._may_recall():
            return None
        entitled = self._entitled(request, now)
        question = _question(request, entitled)
        answer = self._cache.find(question, now) if question is not None else None
        if not heard:
            return answer
        if answer is None:
            if isinstance(entitled, Published):
                return None
            sign = sign_at_once(entitled.responder.identity.signer)
            statuses = statuses or self._remembered(request, entitled)
            if sign is None or statuses is None:
                return None
            answer, draft = self._draft(request, entitled, statuses, now)
            started = perf_counter()
            self._seal(answer, draft, entitled, sign(draft.tbs), started)
            if question is not None:
                self._keep(question, entitled, request, answer)
            elif (
                request.nonce is not None
                and answer.for_one_client
                and self.ready_answers.twice(spelling, request.nonce)
            ):
                self._make_ready(request, spelling, entitled, answer, draft)
        if question is not None and request.nonce is None:
            self._cache.spell(answer, spelling)
        return answer

    def after_look_up(self, request: OCSPRequest, spelling: bytes, now: datetime, tell: Tell) -> bool:
        """See to it that `tell` is called once, in a later turn of the event loop: with the answer, or with the error
        that `answer` would raise, or with neither where `answer` has to be asked.

        False, and it is never called, when more than a look-up of one certificate would have to be waited for. Raises
        what `answer` raises.
        """
        if len(request.cert_ids) != 1 or not self._changes_heard():
            return False
        entitled = self._entitled(request, now)
        if isinstance(entitled, Published) or sign_at_once(entitled.responder.identity.signer) is None:
            return False
        certificate = Certificate(entitled.issuer.authority.id, request.cert_ids[0].serial_number)
        mark, started = self._cache.mark(), perf_counter()

        def looked_up(status: StatusRecord | None, error: Exception | None) -> None:
            self._metrics.lookup_seconds.observe(perf_counter() - started)
            answer = None
            if error is None and self._still_so(mark, (certificate,), (status,)) and self._changes_heard():
                if status is not None:
                    self._cache.remember(certificate, status)
                try:
                    answer = self.at_once(request, spelling, now, [status])
                except Exception as refusal:  # noqa: BLE001 - whoever is told has a word for each
                    error = refusal
            tell(answer, error)

        self._statuses.ask(certificate, looked_up)
        return True

    async def answer(self, request: OCSPRequest, spelling: bytes, now: datetime) -> Answer:
        """The answer to a request at the instant `now`.

        Raises `RequestError` when the request gets none, `StoreUnavailable` and `SignerBusy` when it may come again,
        `SignerUnusable` when the responder cannot speak.
        """
        question = _question(request, self._entitled(request, now))
        if question is None or not self._changes_heard():
            return await self._current_answer(request, now)
        # Who joins may get an answer whose status was read before he asked. While changes are heard that is no older
        # than what the memory would give.
        under_way = self._under_way.get(question)
        answer = await (self._lead(question, request, now) if under_way is None else asyncio.shield(under_way))
        if answer.span.next_update <= now:  # it was begun for somebody else, and has ended meanwhile
            return await self._current_answer(request, now)
        if request.nonce is None:  # whoever sends one never spells a question the same way again
            self._cache.spell(answer, spelling)
        return answer

    async def _lead(self, question: Question, request: OCSPRequest, now: datetime) -> Answer:
        """Find the answer, for everybody who asks the same meanwhile."""
        under_way = self._under_way[question] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._current_answer(request, now)
        except BaseException as error:
            # A cancelled request means that the service is going down.
            told = error if isinstance(error, Exception) else StoreUnavailable("the answer was given up: shutting down")
            under_way.set_exception(told)
            under_way.exception()  # there may be nobody else
            raise
        else:
            under_way.set_result(answer)
            return answer
        finally:
            del self._under_way[question]

    def _entitled(self, request: OCSPRequest, now: datetime) -> Entitled | Published:
        try:
            entitled = self.directory.entitled(request)
        except NotEntitled as error:
            self._metrics.unauthorized[error.cause].inc()
            raise
        if not isinstance(entitled, Published):
            entitled.responder.requestors.check(request.signature, now)
        return entitled

    def _make_ready(
        self, request: OCSPRequest, spelling: bytes, entitled: Entitled, answer: Answer, draft: Draft
    ) -> None:
        """Keep what requests that differ in nothing but the nonce can use of this answer."""
        standing = self._cache.standing(Certificate(entitled.issuer.authority.id, request.cert_ids[0].serial_number))
        sign = sign_at_once(entitled.responder.identity.signer)
        if standing is not None and sign is not None and request.nonce is not None:
            tally = self._metrics.tally("POST", "signed", answer.outcomes, answer.hashes[0])
            sign_seconds = self._metrics.sign_seconds.labels(entitled.responder.authority)
            second = int(answer.span.produced_at.timestamp())
            self.ready_answers.put(spelling, request.nonce, draft, Terms(second, standing, sign, sign_seconds, tally))

    def _remembered(self, request: OCSPRequest, entitled: Entitled) -> list[StatusRecord | None] | None:
        """The statuses of all certificates asked about; None when one is not remembered."""
        authority_id = entitled.issuer.authority.id
        statuses: list[StatusRecord | None] = []
        for cert_id in request.cert_ids:
            standing = self._cache.standing(Certificate(authority_id, cert_id.serial_number))
            if standing is None:
                return None
            statuses.append(standing.status)
        return statuses

    def _keep(self, question: Question, entitled: Entitled | Published, request: OCSPRequest, answer: Answer) -> None:
        if answer.authoritative:
            certificate = Certificate(entitled.issuer.authority.id, request.cert_ids[0].serial_number)
            self._cache.put(question, certificate, answer)

    async def _current_answer(self, request: OCSPRequest, now: datetime) -> Answer:
        """An answer that no change overtook while it was made, neither of a certificate nor of its authority."""
        for _ in range(_ATTEMPTS):
            mark = self._cache.mark()
            if not self._changes_heard() and not self._authorities_known():
                raise StoreUnavailable(
                    "changes are not heard and the authorities could not be read again, or the clock cannot be believed"
                )
            entitled = self._entitled(request, now)
            authority_id = entitled.issuer.authority.id
            certificates = [Certificate(authority_id, cert_id.serial_number) for cert_id in request.cert_ids]
            if isinstance(entitled, Published):
                answer, statuses = await self._published.find(entitled, request.cert_ids, now), []
            else:
                statuses = await self._look_up(certificates)
                if not self._still_so(mark, certificates, statuses):
                    continue  # the key may have been retired meanwhile, and must not sign any more
                answer, draft = self._draft(request, entitled, statuses, now)
                started = perf_counter()
                self._seal(answer, draft, entitled, await entitled.responder.identity.signer.sign(draft.tbs), started)
            if self._still_so(mark, certificates, statuses):
                if self._changes_heard():
                    for certificate, status in zip(certificates, statuses, strict=False):
                        if status is not None:
                            self._cache.remember(certificate, status)
                    question = _question(request, entitled)
                    if question is not None:
                        self._keep(question, entitled, request, answer)
                return answer
        raise StoreUnavailable("the status changed again and again while it was being answered")

    def _still_so(
        self, mark: Mark, certificates: Sequence[Certificate], statuses: Sequence[StatusRecord | None]
    ) -> bool:
        """True while these statuses, read after `mark`, are the newest that this process has heard of. `statuses`:
        none where published answers were read instead.
        """
        return self._cache.unchanged_since(mark, certificates) and not any(
            map(self._cache.overtaken, certificates, statuses)
        )

    async def _look_up(self, certificates: list[Certificate]) -> list[StatusRecord | None]:
        started = perf_counter()
        if len(certificates) == 1:
            records = [await self._statuses.find(*certificates[0])]
        else:
            records = await asyncio.gather(*(self._statuses.find(*certificate) for certificate in certificates))
        self._metrics.lookup_seconds.observe(perf_counter() - started)
        return records

    def _draft(
        self, request: OCSPRequest, entitled: Entitled, statuses: list[StatusRecord | None], now: datetime
    ) -> tuple[Answer, Draft]:
        """What is to be signed, and the answer that lacks nothing but its octets."""
        speaker = entitled.responder
        try:
            span = speaker.governor.span(now, statuses, entitled.issuer.authority.crl)
        except PolicyViolation as error:
            self._metrics.violations.labels(speaker.authority, error.rule).inc()
            raise
        statements: list[Said] = []
        for status in statuses:
            said = entitled.statements.of(status, now)
            if said is None:
                self._metrics.unauthorized[NOT_ON_RECORD].inc()
                raise NotEntitled(NOT_ON_RECORD)
            statements.append(said)
        cert_ids: Sequence[CertID] = request.cert_ids
        # A final answer is the same for everybody and for ever (EN 319 411-2 CSS-6.3.10-11).
        nonce = request.nonce if speaker.profile.nonce and not speaker.final else None
        if speaker.dual_hash and len(cert_ids) == 1 and request.nonce is None:
            cert_ids = (*cert_ids, *_other_names(entitled.issuer, cert_ids[0]))
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
        outcomes = tuple([statement.outcome for statement in statements])
        answer = Answer(
            b"",
            span,
            speaker.governor,
            outcomes,
            tuple([cert_id.hash_algorithm for cert_id in request.cert_ids]),
            authoritative=_UNKNOWN not in outcomes,
            for_one_client=nonce is not None,
            certificate=Certificate(entitled.issuer.authority.id, request.cert_ids[0].serial_number),
        )
        return answer, draft

    def _seal(self, answer: Answer, draft: Draft, entitled: Entitled, signature: bytes, started: float) -> None:
        """Give the answer its octets. `started`: when signing began."""
        self._metrics.sign_seconds.labels(entitled.responder.authority).observe(perf_counter() - started)
        answer.body = draft.seal(signature)


def _question(request: OCSPRequest, entitled: Entitled | Published) -> Question | None:
    """What is asked, if others may ask the same: about one certificate, without nonce and without signature, or with
    either of them where the answer is published and the same for everybody.
    """
    if isinstance(entitled, Published):
        named = request.cert_ids[0]
        one = len(request.cert_ids) == 1
        return Question(entitled.responder, named.issuer + named.serial_number) if one else None
    if request.nonce is not None or request.signature is not None or len(request.cert_ids) != 1:
        return None
    return Question(entitled.responder.template, request.cert_ids[0].encoded)


def _other_names(issuer: Issuer, asked: CertID) -> list[CertID]:
    """RFC 9919 §3.2.1: with a SHA-1 CertID the same in SHA-256, and the other way round."""
    other = {HashAlgorithm.SHA_1: HashAlgorithm.SHA_256, HashAlgorithm.SHA_256: HashAlgorithm.SHA_1}
    if asked.hash_algorithm not in other:
        return []
    return [issuer.cert_id(other[asked.hash_algorithm], asked.serial_number)]
