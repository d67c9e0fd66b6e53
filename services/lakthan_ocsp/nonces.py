"""Answers with a nonce for certificates that are asked about again and again: everything but nonce and signature ready.

Two requests of one kind of client about one certificate differ in nothing but the nonce's octets, which are the last.
So a request that is as long as one that was read, and the same up to its nonce, all lengths included, is as good as
that one; with the head of its HTTP request just as well as without. And their answers in one second differ in nothing
but the nonce and the signature.

What is ready was made the general way, for a request that came twice, and is used within that second, while the status
that it speaks of stands. Then it is made anew. Each answer is signed by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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

_MOST = 2048


class Terms(NamedTuple):
    """On what an answer stands (this second, a status, a key), and where it is timed and counted."""

    second: int
    standing: Standing
    sign: Callable[[bytes], bytes]
    sign_seconds: Series
    tally: Tally


class Signed(NamedTuple):
    """ResponseData and its signature."""

    tbs: bytes
    signature: bytes


@dataclass(slots=True, eq=False)
class Ready:
    """An answer's octets to sign without the nonce. `before` and `after` it; `value`: where the extnValue begins in the
    request, counted from its end.

    `frames`: what the HTTP edge puts around and between the two parts of a `Signed`, by the length of the signature.
    """

    value: int
    before: bytes
    after: bytes
    template: ResponderTemplate
    terms: Terms
    frames: dict[int, tuple[bytes, bytes, bytes]] = field(default_factory=dict)

    def sign(self, asked: bytes, now_seconds: float) -> Signed | None:
        """The answer to these octets, signed now; None when it is not ready any more.

        To be asked only while changes are heard.
        """
        second, standing, sign, sign_seconds, _ = self.terms
        if not second <= now_seconds < second + 1 or not standing.current:
            return None
        tbs = b"".join((self.before, asked[self.value :], self.after))
        started = perf_counter()
        signature = sign(tbs)
        sign_seconds.observe(perf_counter() - started)
        return Signed(tbs, signature)


class ReadyAnswers:
    """The answers that are ready but for their nonce."""

    def __init__(self) -> None:
        # How many octets the nonce itself has in what is of this length, as the last of them had it; another length of
        # nonce in what is of the same length costs time, no more.
        self._nonces: dict[int, int] = {}
        self._ready: dict[bytes, Ready | None] = {}

    def find(self, asked: bytes) -> Ready | None:
        """What is ready for these octets: an OCSPRequest, or a whole HTTP request that was noted but for its nonce."""
        nonce = self._nonces.get(len(asked))
        return None if nonce is None else self._ready.get(asked[:-nonce])

    def note(self, request: bytes, ready: Ready) -> None:
        """Find this also by an HTTP request, head and all, which ends with an OCSPRequest that it was found by."""
        nonce = -ready.value - _heads(-ready.value)
        self._nonces[len(request)] = nonce
        self._keep(request[:-nonce], ready)

    def twice(self, encoded: bytes, nonce: bytes) -> bool:
        """Take note of a request with this extnValue. True when one like it was noted before: it is worth a `put`."""
        size = len(nonce) - _heads(len(nonce))
        if size <= 0 or len(encoded) > usual_request.LONGEST or not encoded.endswith(nonce):
            return False
        self._nonces[len(encoded)] = size
        prefix = encoded[:-size]
        if prefix in self._ready:
            return usual_request.read(encoded) is not None
        self._keep(prefix, None)
        return False

    def put(self, encoded: bytes, nonce: bytes, draft: Draft, terms: Terms) -> None:
        """Keep what can be used again of an answer."""
        after = b"" if draft.tbs.endswith(nonce) else EXTENDED_REVOKE
        stop = len(draft.tbs) - len(after)
        before = draft.tbs[: stop - len(nonce)]
        if before + nonce + after == draft.tbs:
            prefix = encoded[: _heads(len(nonce)) - len(nonce)]
            self._keep(prefix, Ready(-len(nonce), before, after, draft.template, terms))

    def _keep(self, prefix: bytes, ready: Ready | None) -> None:
        if len(self._ready) >= _MOST and prefix not in self._ready:
            for oldest in list(islice(self._ready, _MOST // 8)):
                del self._ready[oldest]
        self._ready[prefix] = ready


def _heads(extn_value: int) -> int:
    """How many octets of a usual request's extnValue of this length come before the nonce itself: two heads."""
    return 4 if extn_value < 0x82 else 5
