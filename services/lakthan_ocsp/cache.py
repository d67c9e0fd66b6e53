"""Answers that may be given again: to the same request octets, until they are due for renewal, while nothing changed.

The database is the authority and this is only a memory of what it said. Three rules keep a stale *good* out:

- a change of a certificate's status drops every answer about it, in the tick in which the notification arrives;
- when notifications may have been missed, everything is dropped (whoever asks does not ask while they are missing);
- an answer whose status was read before a change and finished after it is neither remembered nor given: whoever
  computes one takes a `Mark` first and asks `unchanged_since` last.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from lakthan.algorithms import HashAlgorithm
    from lakthan_ocsp.governor import Governor, Span

_REMEMBERED_CHANGES = 4096


class Certificate(NamedTuple):
    """What answers are about: an authority of the store, and a serial number as its minimal INTEGER content."""

    authority_id: int
    serial_number: bytes


@dataclass(slots=True)
class Answer:
    """A signed OCSPResponse and what the HTTP edge needs to give it out.

    `span`: what it says of its time. `outcomes` and `hashes`: for the metrics, the CertStatus of each SingleResponse
    and the hash algorithm of each CertID that was asked. `etag`: '' for an answer that is for one client only, because
    it has that client's nonce.
    """

    body: bytes
    span: Span
    governor: Governor
    outcomes: tuple[str, ...]
    hashes: tuple[HashAlgorithm | None, ...]
    authoritative: bool
    etag: str


class Mark(NamedTuple):
    """A point in the sequence of changes."""

    number: int


class AnswerCache:
    """At most `capacity` answers; when full, the oldest eighth goes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._answers: dict[bytes, Answer] = {}
        self._requests: dict[Certificate, set[bytes]] = {}
        self._certificates: dict[bytes, Certificate] = {}
        self._number = 0
        self._changed: dict[Certificate, int] = {}
        self._all_changed = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: bytes, now: datetime) -> Answer | None:
        """The answer to these request octets, if one is remembered and not due for renewal."""
        answer = self._answers.get(request)
        if answer is None:
            return None
        # A clock set back must not bring old answers to life again: an answer from the future is not used.
        if answer.span.produced_at <= now < answer.span.renew_at:
            return answer
        self._forget([request])
        return None

    def put(self, request: bytes, certificate: Certificate, answer: Answer) -> None:
        """Remember."""
        if not self._capacity:
            return
        if len(self._answers) >= self._capacity:
            self._forget(list(islice(self._answers, max(1, self._capacity // 8))))
        self._answers[request] = answer
        self._certificates[request] = certificate
        self._requests.setdefault(certificate, set()).add(request)

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
        self._forget(list(self._requests.get(certificate, ())))

    def drop_all(self) -> None:
        """Notifications may have been missed: know nothing."""
        self._number += 1
        self._all_changed = self._number
        self._changed.clear()
        self._answers.clear()
        self._requests.clear()
        self._certificates.clear()

    def _forget(self, requests: Iterable[bytes]) -> None:
        for request in requests:
            del self._answers[request]
            certificate = self._certificates.pop(request)
            of_certificate = self._requests[certificate]
            of_certificate.discard(request)
            if not of_certificate:
                del self._requests[certificate]
