"""Answers with a nonce for certificates that are asked about again and again: everything but nonce and signature ready.

Two requests of one kind of client about one certificate differ in nothing but the nonce's octets, which are the last.
So a request that is as long as one that was read, and the same up to its nonce, all lengths included, is as good as
that one. And their answers in one second differ in nothing but the nonce and the signature.

What is ready was made the general way, for a request that came twice, and is used within that second, while the status
that it speaks of stands. Then it is made anew. Each answer is signed by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from lakthan_ocsp import usual_request
from lakthan_ocsp.responder import EXTENDED_REVOKE

if TYPE_CHECKING:
    from collections.abc import Callable

    from lakthan.telemetry.plain import Series
    from lakthan_ocsp.cache import Standing
    from lakthan_ocsp.metrics import Tally
    from lakthan_ocsp.responder import Draft, ResponderTemplate

_MOST = 1024


class Terms(NamedTuple):
    """On what an answer stands (this second, a status, a key), and where it is timed and counted."""

    second: int
    standing: Standing
    sign: Callable[[bytes], bytes]
    sign_seconds: Series
    tally: Tally


@dataclass(slots=True, eq=False)
class Ready:
    """An answer's octets to sign without the nonce. `before` and `after` it; `value`: where the extnValue begins in the
    request.
    """

    value: int
    before: bytes
    after: bytes
    template: ResponderTemplate
    terms: Terms


class ReadyAnswers:
    """The answers that are ready but for their nonce."""

    def __init__(self) -> None:
        # Where the nonce begins in requests of this length, as the last of them had it; another length of nonce in
        # requests of the same length costs time, no more.
        self._cuts: dict[int, int] = {}
        self._ready: dict[bytes, Ready | None] = {}

    def answer(self, encoded: bytes, now_seconds: float) -> tuple[bytes, Tally] | None:
        """The OCSPResponse for these octets, signed now, and where it is to be counted; None when none is ready.

        To be asked only while changes are heard.
        """
        cut = self._cuts.get(len(encoded))
        if cut is None:
            return None
        ready = self._ready.get(encoded[:cut])
        if ready is None:
            return None
        terms = ready.terms
        if terms.second != int(now_seconds) or not terms.standing.current:
            return None
        tbs = b"".join((ready.before, encoded[ready.value :], ready.after))
        started = perf_counter()
        signature = terms.sign(tbs)
        terms.sign_seconds.observe(perf_counter() - started)
        return ready.template.seal(tbs, signature), terms.tally

    def twice(self, encoded: bytes, nonce: bytes) -> bool:
        """Take note of a request with this extnValue. True when one like it was noted before: it is worth a `put`."""
        value = len(encoded) - len(nonce)
        if len(encoded) > usual_request.LONGEST or encoded[value:] != nonce:
            return False
        cut = value + _content(nonce)
        self._cuts[len(encoded)] = cut
        prefix = encoded[:cut]
        if prefix in self._ready:
            return usual_request.read(encoded) is not None
        if len(self._ready) >= _MOST:
            for oldest in list(islice(self._ready, _MOST // 8)):
                del self._ready[oldest]
        self._ready[prefix] = None
        return False

    def put(self, encoded: bytes, nonce: bytes, draft: Draft, terms: Terms) -> None:
        """Keep what can be used again of an answer."""
        after = b"" if draft.tbs.endswith(nonce) else EXTENDED_REVOKE
        stop = len(draft.tbs) - len(after)
        before, value = draft.tbs[: stop - len(nonce)], len(encoded) - len(nonce)
        if before + nonce + after == draft.tbs:
            prefix = encoded[: value + _content(nonce)]
            self._ready[prefix] = Ready(value, before, after, draft.template, terms)


def _content(nonce: bytes) -> int:
    """How many octets of a usual request's extnValue come before the nonce itself: two heads."""
    return 4 if nonce[1] < 0x80 else 5
