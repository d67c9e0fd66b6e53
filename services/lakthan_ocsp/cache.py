"""What may be said again without asking: signed answers until they are due for renewal, and statuses, while nothing
changed.

The database is the authority and this is only a memory of what it said. Three rules keep a stale *good* out:

- a change of a certificate's status drops everything about it, in the tick in which the notification arrives, or
  somebody reads it in the store before: who has heard *revoked* does not hear *good* again;
- when notifications may have been missed, everything is dropped (whoever asks does not ask while they are missing);
- what was read before a change and finished after it is neither remembered nor given: whoever computes an answer takes
  a `Mark` first and asks `unchanged_since` last.

An answer is one object, however many spellings of the question lead to it (POST bodies, GET targets): to forget it is
to end it (`Answer.until`) and to drop its spellings. Memory is bounded in answers and in octets; when it is full, the
oldest few of the answers go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from lakthan.algorithms import HashAlgorithm
    from lakthan.store.records import StatusRecord
    from lakthan_ocsp.directory import PublishedResponder
    from lakthan_ocsp.governor import MaxAge, Span
    from lakthan_ocsp.metrics import Tally
    from lakthan_ocsp.responder import ResponderTemplate

_REMEMBERED_CHANGES = 4096
_MOST_STATUSES = 32_768
# Spellings of one question; clients use a handful, and whoever invents more does not fill the memory with them.
_MOST_SPELLINGS = 8
_LONGEST_SPELLING = 512
# What CPython needs for an answer beside the octets of its body, and for a spelling beside its own, measured.
_OCTETS_OF_ANSWER = 1600
_OCTETS_OF_SPELLING = 160


class Certificate(NamedTuple):
    """What answers are about: an authority of the store, and a serial number as its minimal INTEGER content."""

    authority_id: int
    serial_number: bytes


class Question(NamedTuple):
    """What makes two plain requests the same: who answers, and the CertID as it comes back (responders differ in key,
    CertIDs in hash and encoding).
    """

    template: ResponderTemplate | PublishedResponder
    cert_id: bytes


@dataclass(slots=True, eq=False)
class Answer:
    """A signed OCSPResponse and what the HTTP edge needs to give it out.

    `span`: what it says of its time. `outcomes` and `hashes`: for the metrics, the CertStatus of each SingleResponse
    and the hash algorithm of each CertID that was asked; `source`: `signed` here, or `published`. `for_one_client`: it
    has that client's nonce.

    The rest is the memory's and the wire's: `since` and `until`, between which it may be given again (seconds of the
    epoch), and until when the `head` of its response that is ready made holds; `octets`: how much memory it takes with
    its spellings, about; `given`: it was given before.
    """

    body: bytes
    span: Span
    governor: MaxAge
    outcomes: tuple[str, ...]
    hashes: tuple[HashAlgorithm | None, ...]
    authoritative: bool
    for_one_client: bool = False
    source: str = "signed"
    given: bool = False
    certificate: Certificate | None = None
    question: Question | None = None
    spellings: list[bytes] = field(default_factory=list)
    since: float = 0.0
    until: float = 0.0
    head_until: float = 0.0
    head: bytes = b""
    octets: int = 0
    gets: Tally | None = None
    posts: Tally | None = None


@dataclass(slots=True, eq=False)
class Standing:
    """What the store said of a certificate; `current` until that may have changed."""

    status: StatusRecord
    current: bool = True


class Mark(NamedTuple):
    """A point in the sequence of changes."""

    number: int


class AnswerCache:
    """At most `capacity` answers of about `most_octets` of memory together, and the statuses of as many certificates
    or some thousand.

    `by_spelling` is for the wire to look into; it checks `since` and `until` itself.
    """

    def __init__(self, capacity: int, most_octets: int = 96 << 20) -> None:
        self._capacity = capacity
        self._most_statuses = min(capacity, _MOST_STATUSES)
        self._most_octets = most_octets
        self._octets = 0
        self.by_spelling: dict[bytes, Answer] = {}
        self._by_question: dict[Question, Answer] = {}
        self._of_certificate: dict[Certificate, list[Answer]] = {}
        self._statuses: dict[Certificate, Standing] = {}
        self._number = 0
        self._changed: dict[Certificate, int] = {}
        self._all_changed = 0

    def __len__(self) -> int:
        return len(self._by_question)

    @property
    def octets(self) -> int:
        """About how much memory the answers take."""
        return self._octets

    def get(self, spelling: bytes, now: datetime) -> Answer | None:
        """The answer to a question in this spelling, if one is remembered and not due for renewal."""
        return self._current(self.by_spelling.get(spelling), now)

    def find(self, question: Question, now: datetime) -> Answer | None:
        """The same, by what is asked."""
        return self._current(self._by_question.get(question), now)

    def _current(self, answer: Answer | None, now: datetime) -> Answer | None:
        # A clock set back must not bring old answers to life again: an answer from the future is not used.
        if answer is None or answer.since <= now.timestamp() < answer.until:
            return answer
        self._forget(answer)
        return None

    def put(self, question: Question, certificate: Certificate, answer: Answer) -> None:
        """Remember an answer about one certificate."""
        if not self._capacity:
            return
        there = self._by_question.get(question)
        if there is not None:
            self._forget(there)
        answer.question, answer.certificate = question, certificate
        answer.since, answer.until = answer.span.produced_at.timestamp(), answer.span.renew_at.timestamp()
        answer.octets = _OCTETS_OF_ANSWER + len(answer.body)
        self._octets += answer.octets
        self._by_question[question] = answer
        self._of_certificate.setdefault(certificate, []).append(answer)
        self._make_room()

    def spell(self, answer: Answer, spelling: bytes) -> None:
        """Take note of another way to ask for an answer that is remembered; of one that is not, nothing is noted."""
        if len(spelling) > _LONGEST_SPELLING or not answer.until or spelling in self.by_spelling:
            return
        more = len(spelling) + _OCTETS_OF_SPELLING
        if len(answer.spellings) == _MOST_SPELLINGS:
            oldest = answer.spellings.pop(0)
            del self.by_spelling[oldest]
            more -= len(oldest) + _OCTETS_OF_SPELLING
        answer.spellings.append(spelling)
        self.by_spelling[spelling] = answer
        answer.octets += more
        self._octets += more
        self._make_room()

    def _make_room(self) -> None:
        if len(self._by_question) > self._capacity or self._octets > self._most_octets:
            # Some at once, because the front of a dict is slow to find when it has been emptied one by one.
            for answer in list(islice(self._by_question.values(), len(self._by_question) // 64 + 1)):
                self._forget(answer)

    def remember(self, certificate: Certificate, status: StatusRecord) -> None:
        """Remember what the store said of a certificate, which nothing overtook.

        When that is not what is remembered the store was quicker than its notification, and this is the change.
        """
        if not self._capacity:
            return
        there = self._statuses.get(certificate)
        if there is not None and there.status == status:
            return
        if there is not None or certificate in self._of_certificate:
            self.drop(certificate)
        if len(self._statuses) >= self._most_statuses:
            for oldest in list(islice(self._statuses, self._most_statuses // 8 + 1)):
                self._statuses.pop(oldest).current = False
        self._statuses[certificate] = Standing(status)

    def overtaken(self, certificate: Certificate, status: StatusRecord | None) -> bool:
        """True when somebody who read this certificate later was done earlier, and something newer is remembered."""
        there = self._statuses.get(certificate)
        return there is not None and (status is None or there.status.version > status.version)

    def standing(self, certificate: Certificate) -> Standing | None:
        """What the store said; None when that is not remembered. That there is no record never is."""
        return self._statuses.get(certificate)

    def mark(self) -> Mark:
        """Where the sequence of changes stands now; taken before a status is read."""
        return Mark(self._number)

    def unchanged_since(self, mark: Mark, certificates: Iterable[Certificate]) -> bool:
        """False when a change of one of these, or a `drop_all`, came after `mark`."""
        if self._all_changed > mark.number:
            return False
        return all(self._changed.get(certificate, 0) <= mark.number for certificate in certificates)

    def drop(self, certificate: Certificate) -> None:
        """The status of `certificate` changed."""
        self._number += 1
        self._changed[certificate] = self._number
        if len(self._changed) > _REMEMBERED_CHANGES:
            # Rare, and coarse on purpose: whoever computes an answer right now computes it again.
            self._changed.clear()
            self._all_changed = self._number
        standing = self._statuses.pop(certificate, None)
        if standing is not None:
            standing.current = False
        for answer in list(self._of_certificate.get(certificate, ())):
            self._forget(answer)

    def keep_answers_only(self) -> None:
        """Notifications may have been missed: no status is known any more. Answers that were signed before remain; they
        say themselves of when they are.
        """
        self._number += 1
        self._all_changed = self._number
        self._changed.clear()
        for standing in self._statuses.values():
            standing.current = False
        self._statuses.clear()

    def drop_all(self) -> None:
        """Notifications may have been missed: know nothing."""
        self.keep_answers_only()
        for answer in self._by_question.values():
            answer.until = answer.head_until = 0.0
        self._octets = 0
        self.by_spelling.clear()
        self._by_question.clear()
        self._of_certificate.clear()

    def _forget(self, answer: Answer) -> None:
        if not answer.until or answer.question is None or answer.certificate is None:
            return
        self._octets -= answer.octets
        answer.until = answer.head_until = 0.0
        for spelling in answer.spellings:
            del self.by_spelling[spelling]
        answer.spellings.clear()
        del self._by_question[answer.question]
        of_certificate = self._of_certificate[answer.certificate]
        of_certificate.remove(answer)
        if not of_certificate:
            del self._of_certificate[answer.certificate]
