"""The response cache and the spans: what is given again, and what never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lakthan.certificates import CertificateView
from lakthan.config import KeyURI, ResponderConfig
from lakthan_ocsp.cache import Answer, AnswerCache, Certificate
from lakthan_ocsp.governor import Governor, Span
from lakthan_ocsp.profiles import PDF_LTV
from support.pki import issue

NOW = datetime.now(UTC).replace(microsecond=0)
ONE, TWO = Certificate(1, b"\x01"), Certificate(1, b"\x02")


CONFIG = ResponderConfig("ca", Path("x"), KeyURI("file:x", Path()))
GOVERNOR = Governor(CONFIG, PDF_LTV, CertificateView.of(issue("responder").certificate))


def answer(at: datetime = NOW, hours: int = 1) -> Answer:
    """An answer signed at that time, to be renewed some hours later."""
    span = Span(at, at, at + timedelta(days=4), at + timedelta(hours=hours))
    return Answer(b"x", span, GOVERNOR, ("good",), (), authoritative=True, etag="")


def test_an_answer_is_given_until_it_is_due() -> None:
    """From thisUpdate on, and not at the moment of renewal or later."""
    cache = AnswerCache(10)
    cache.put(b"r", ONE, answer())
    assert cache.get(b"r", NOW) is not None
    assert cache.get(b"r", NOW + timedelta(minutes=59)) is not None
    assert cache.get(b"r", NOW + timedelta(hours=1)) is None
    assert len(cache) == 0


def test_a_clock_that_was_set_back_revives_nothing() -> None:
    """An answer from the future is not used."""
    cache = AnswerCache(10)
    cache.put(b"r", ONE, answer())
    assert cache.get(b"r", NOW - timedelta(seconds=1)) is None


def test_a_change_drops_every_answer_about_the_certificate() -> None:
    """All requests that asked for it are forgotten, others are not."""
    cache = AnswerCache(10)
    for request in (b"sha1", b"sha256"):
        cache.put(request, ONE, answer())
    cache.put(b"other", TWO, answer())
    cache.drop(ONE)
    assert cache.get(b"sha1", NOW) is None
    assert cache.get(b"sha256", NOW) is None
    assert cache.get(b"other", NOW) is not None


def test_marks_see_changes_of_their_certificates_only() -> None:
    """Whoever computed an answer across a change learns it; across somebody else's change, nothing is lost."""
    cache = AnswerCache(10)
    mark = cache.mark()
    cache.drop(TWO)
    assert cache.unchanged_since(mark, [ONE])
    assert not cache.unchanged_since(mark, [ONE, TWO])
    assert cache.unchanged_since(cache.mark(), [TWO])


def test_marks_see_that_everything_was_dropped() -> None:
    """A time without notifications makes every answer under way suspect."""
    cache = AnswerCache(10)
    mark = cache.mark()
    cache.put(b"r", ONE, answer())
    cache.drop_all()
    assert cache.get(b"r", NOW) is None
    assert not cache.unchanged_since(mark, [ONE])
    assert cache.unchanged_since(cache.mark(), [ONE])


def test_marks_outlive_many_changes() -> None:
    """The memory of changes is bounded, and what it no longer knows counts as changed."""
    cache = AnswerCache(10)
    mark = cache.mark()
    for number in range(10_000):
        cache.drop(Certificate(2, number.to_bytes(4, "big")))
    assert not cache.unchanged_since(mark, [ONE])


@pytest.mark.parametrize("capacity", [0, 1, 8, 100])
def test_the_cache_is_bounded(capacity: int) -> None:
    """However many requests come, no more than `capacity` answers are kept, the newest among them."""
    cache = AnswerCache(capacity)
    for number in range(500):
        cache.put(b"%d" % number, Certificate(1, b"%d" % (number % 7)), answer())
        assert len(cache) <= capacity
    assert (cache.get(b"499", NOW) is not None) == bool(capacity)
