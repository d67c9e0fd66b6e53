"""The response cache and the spans: what is given again, and what never."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from lakthan.certificates import CertificateView
from lakthan.config import KeyURI, ResponderConfig
from lakthan.identity import Identity
from lakthan.keys.software import SoftwareSigner
from lakthan.store.records import CertStatus, StatusRecord
from lakthan_ocsp.cache import Answer, AnswerCache, Certificate, Question
from lakthan_ocsp.governor import Governor, Span
from lakthan_ocsp.profiles import PDF_LTV
from lakthan_ocsp.responder import ResponderTemplate
from support.pki import issue

NOW = datetime.now(UTC).replace(microsecond=0)
ONE, TWO = Certificate(1, b"\x01"), Certificate(1, b"\x02")

CONFIG = ResponderConfig("ca", Path("x"), KeyURI("file:x", Path()))
ISSUED = issue("responder")
VIEW = CertificateView.of(ISSUED.certificate)
GOVERNOR = Governor(CONFIG, PDF_LTV, VIEW)
TEMPLATE = ResponderTemplate(Identity(VIEW, SoftwareSigner(ISSUED.key)))


def answer(at: datetime = NOW, hours: int = 1, octets: int = 1) -> Answer:
    """An answer signed at that time, to be renewed some hours later."""
    span = Span(at, at, at + timedelta(days=4), at + timedelta(hours=hours))
    return Answer(bytes(octets), span, GOVERNOR, ("good",), (), authoritative=True)


def put(cache: AnswerCache, name: bytes, certificate: Certificate = ONE, given: Answer | None = None) -> Answer:
    """Remember an answer to a question of that name, which is also its spelling."""
    made = answer() if given is None else given
    cache.put(Question(TEMPLATE, name), certificate, made)
    cache.spell(made, name)
    return made


def test_an_answer_is_given_until_it_is_due() -> None:
    """From thisUpdate on, and not at the moment of renewal or later."""
    cache = AnswerCache(10)
    put(cache, b"r")
    assert cache.get(b"r", NOW) is not None
    assert cache.get(b"r", NOW + timedelta(minutes=59)) is not None
    assert cache.get(b"r", NOW + timedelta(hours=1)) is None
    assert len(cache) == 0


def test_a_clock_that_was_set_back_revives_nothing() -> None:
    """An answer from the future is not used."""
    cache = AnswerCache(10)
    put(cache, b"r")
    assert cache.get(b"r", NOW - timedelta(seconds=1)) is None


def test_a_change_drops_every_answer_about_the_certificate() -> None:
    """All answers about it are ended, in all their spellings; others are not."""
    cache = AnswerCache(10)
    ended = [put(cache, name) for name in (b"sha1", b"sha256")]
    cache.spell(ended[0], b"/sha1")
    other = put(cache, b"other", TWO)
    cache.drop(ONE)
    assert not any(cache.get(name, NOW) for name in (b"sha1", b"/sha1", b"sha256"))
    assert [each.until for each in ended] == [0, 0]
    assert cache.get(b"other", NOW) is other
    assert list(cache.by_spelling) == [b"other"]


def test_one_answer_has_many_spellings() -> None:
    """A question in another spelling finds the same answer; only so many spellings are kept, the newest."""
    cache = AnswerCache(10)
    made = put(cache, b"r")
    for number in range(100):
        cache.spell(made, b"/%d" % number)
    assert cache.get(b"/99", NOW) is made
    assert cache.get(b"/0", NOW) is None
    assert len(cache.by_spelling) < 10
    cache.spell(made, bytes(100_000))
    assert cache.get(bytes(100_000), NOW) is None


def test_an_answer_that_was_forgotten_gets_no_spelling() -> None:
    """Who found an answer before it was dropped cannot bring it back."""
    cache = AnswerCache(10)
    made = put(cache, b"r")
    cache.drop(ONE)
    cache.spell(made, b"again")
    assert cache.get(b"again", NOW) is None


def test_a_new_answer_takes_the_place_of_the_old_one() -> None:
    """Two answers to one question are never both there."""
    cache = AnswerCache(10)
    old, new = put(cache, b"r"), put(cache, b"r")
    assert (old.until, cache.get(b"r", NOW), len(cache)) == (0, new, 1)


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
    made = put(cache, b"r")
    cache.drop_all()
    assert cache.get(b"r", NOW) is None
    assert made.until == 0
    assert not cache.unchanged_since(mark, [ONE])
    assert cache.unchanged_since(cache.mark(), [ONE])


def test_marks_outlive_many_changes() -> None:
    """The memory of changes is bounded, and what it no longer knows counts as changed."""
    cache = AnswerCache(10)
    mark = cache.mark()
    for number in range(10_000):
        cache.drop(Certificate(2, number.to_bytes(4, "big")))
    assert not cache.unchanged_since(mark, [ONE])


def record(certificate: Certificate) -> StatusRecord:
    """A good one."""
    return StatusRecord(*certificate, CertStatus.GOOD, None, None, None, None, 1)


def test_statuses_stand_until_they_may_have_changed() -> None:
    """What stands on a status sees that it has ended, whichever way that was."""
    cache = AnswerCache(10)
    ends: list[Callable[[], None]] = [partial(cache.drop, ONE), cache.drop_all]
    for end in ends:
        cache.remember(ONE, record(ONE))
        standing = cache.standing(ONE)
        assert standing is not None
        assert standing.current
        end()
        assert not standing.current
        assert cache.standing(ONE) is None


def test_a_status_that_two_looked_up_at_once_falls_for_both() -> None:
    """Two requests may look the same certificate up side by side and both remember it. Whoever holds on to the first
    standing must learn of a change as well: a *good* was once given from it after the revocation.
    """
    cache = AnswerCache(10)
    cache.remember(ONE, record(ONE))
    first = cache.standing(ONE)
    assert first is not None
    cache.remember(ONE, record(ONE))
    second = cache.standing(ONE)
    assert second is not None
    cache.remember(ONE, record(ONE)._replace(version=record(ONE).version + 1))
    third = cache.standing(ONE)
    assert third is not None
    assert (first.current, second.current, third.current) == (False, False, True)
    cache.drop(ONE)
    assert not any(standing.current for standing in (first, second, third))


@pytest.mark.parametrize(("capacity", "most"), [(0, 0), (1, 1), (10, 10), (100_000, 40_000)])
def test_remembered_statuses_are_bounded(capacity: int, most: int) -> None:
    """However many certificates are asked about; and no more of them than of answers."""
    cache = AnswerCache(capacity)
    certificates = [Certificate(1, number.to_bytes(4, "big")) for number in range(100_000)]
    for certificate in certificates:
        cache.remember(certificate, record(certificate))
    remembered = [certificate for certificate in certificates if cache.standing(certificate)]
    assert remembered[-1:] == certificates[-1:] * bool(capacity)
    assert len(remembered) <= most


@pytest.mark.parametrize("capacity", [0, 1, 8, 100])
def test_the_cache_is_bounded(capacity: int) -> None:
    """However many requests come, no more than `capacity` answers are kept, the newest among them."""
    cache = AnswerCache(capacity)
    for number in range(500):
        put(cache, b"%d" % number, Certificate(1, b"%d" % (number % 7)))
        assert len(cache) <= capacity
    assert (cache.get(b"499", NOW) is not None) == bool(capacity)


def test_the_cache_is_bounded_in_octets() -> None:
    """Large answers and many spellings count; what is counted is nothing when nothing is there."""
    cache = AnswerCache(100_000, 1 << 20)
    for number in range(500):
        put(cache, b"%d" % number, Certificate(1, b"%d" % (number % 7)), answer(octets=10_000))
        assert cache.octets <= 1 << 20
    assert len(cache) > 50
    for number in range(7):
        cache.drop(Certificate(1, b"%d" % number))
    assert (len(cache), cache.octets, len(cache.by_spelling)) == (0, 0, 0)


@pytest.mark.parametrize("seconds", [0.0, 0.25, 3000.0, 3299.75, 3300.5, 3598.5])
def test_how_long_a_max_age_holds(seconds: float) -> None:
    """A head with a max-age may be used again exactly as long as a new one would say the same."""
    renew_at = NOW + timedelta(hours=1)
    now = NOW + timedelta(seconds=seconds)
    until = datetime.fromtimestamp(GOVERNOR.same_max_age_until(now, renew_at), UTC)
    assert until > now
    same = GOVERNOR.seconds_to_keep(now, renew_at)
    assert GOVERNOR.seconds_to_keep(until - timedelta(milliseconds=1), renew_at) == same
    assert GOVERNOR.seconds_to_keep(until + timedelta(milliseconds=1), renew_at) == same - 1


def test_a_store_that_is_quicker_than_its_notification() -> None:
    """What is read of a change before it is heard drops the older answers, and whoever read before that is too late."""
    cache = AnswerCache(10)
    older, newer = record(ONE), record(ONE)._replace(version=record(ONE).version + 1)
    mark = cache.mark()
    cache.remember(ONE, older)
    said = put(cache, b"in another spelling")
    assert cache.unchanged_since(mark, [ONE])
    cache.remember(ONE, newer)
    assert not said.until
    assert not cache.unchanged_since(mark, [ONE])
    assert (cache.overtaken(ONE, older), cache.overtaken(ONE, None), cache.overtaken(ONE, newer)) == (True, True, False)
