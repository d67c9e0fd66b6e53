"""The profiles and their governor: which spans an answer may have, and when none is given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from lakthan.certificates import CertificateView
from lakthan.config import KeyURI, ResponderConfig
from lakthan.errors import ConfigError
from lakthan.store.records import CertStatus, CRLReason, CRLSource, StatusRecord
from lakthan_ocsp.governor import Governor, PolicyViolation, SourceExpired
from lakthan_ocsp.profiles import PROFILES, Profile
from support.pki import issue

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
VIEW = CertificateView.of(issue("responder").certificate)  # thirty days left
CONFIG = ResponderConfig("ca", Path("x"), KeyURI("file:x", Path()))


def governor(profile: str = "pdf-ltv", **settings: timedelta | bool) -> Governor:
    """The governor of a responder with these settings."""
    return Governor(msgspec.structs.replace(CONFIG, profile=profile, **settings), PROFILES[profile], VIEW)


def record(*, not_after: datetime | None = None, held: bool = False) -> StatusRecord:
    """What the store says of a certificate."""
    status = CertStatus.REVOKED if held else CertStatus.GOOD
    reason = CRLReason.CERTIFICATE_HOLD if held else None
    return StatusRecord(1, b"\x01", status, NOW if held else None, reason, None, not_after, 1)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_keeps_its_own_limits(profile: Profile) -> None:
    """The defaults of a profile pass its governor, and give a span that a client of it takes.

    OCSP-72, OCSP-Q42, OCSP-Q43, OCSP-Q46.
    """
    spans = governor(profile.name)
    span = spans.span(NOW)
    assert span.produced_at == span.this_update == NOW
    assert span.next_update - span.this_update == profile.validity
    assert profile.shortest <= profile.validity <= profile.longest == timedelta(days=10)
    assert NOW < span.renew_at <= NOW + profile.refresh
    assert spans.seconds_to_keep(NOW, span.renew_at) <= profile.max_age.total_seconds()
    if profile.oldest is not None:
        assert span.renew_at + profile.max_age <= NOW + profile.oldest


@pytest.mark.parametrize(
    ("profile", "settings", "says"),
    [
        ("pdf-ltv", {"refresh": 4 * DAY}, "refresh must be shorter"),
        ("pdf-ltv", {"refresh": timedelta(0)}, "refresh must be shorter"),
        ("pdf-ltv", {"validity": HOUR / 2}, "refresh must be shorter"),
        ("pdf-ltv", {"max_age": timedelta(seconds=-1)}, "max_age is negative"),
        ("pdf-ltv", {"validity": 11 * DAY}, "at most 10 days"),
        ("tls-br", {"validity": 7 * HOUR, "refresh": HOUR}, "at least 8:00:00"),
        ("tls-br", {"validity": 12 * HOUR, "refresh": 7 * HOUR}, "refresh must be at most 6:00:00"),
        ("tls-br", {"validity": 16 * HOUR, "refresh": 9 * HOUR}, "refresh must be at most 8:00:00"),
        ("smime-br", {"validity": 10 * DAY, "refresh": 5 * DAY}, "refresh must be at most 4 days"),
        ("code-signing", {"validity": 10 * DAY, "refresh": 5 * DAY}, "refresh must be at most 4 days"),
        ("tls-br", {"final": True}, "final answers break"),
        ("x-road", {"refresh": 58 * HOUR / 60}, "together must be at most 1:00:00"),
    ],
)
def test_settings_that_break_their_profile(profile: str, settings: dict[str, timedelta | bool], says: str) -> None:
    """A setting that no answer could keep the profile with is refused at start, with the limit. OCSP-60, OCSP-61."""
    with pytest.raises(ConfigError, match=f"responder of 'ca', profile {profile}: .*{says}"):
        governor(profile, **settings)


def test_the_span_ends_with_the_responder_certificate() -> None:
    """The nextUpdate never lies beyond the responder certificate, and without one in force nothing is signed.

    OCSP-23, OCSP-73.
    """
    spans = governor()
    near = VIEW.not_after - HOUR
    assert spans.span(near).next_update == VIEW.not_after
    for outside in (VIEW.not_after, VIEW.not_after + DAY, VIEW.not_before - timedelta(seconds=1)):
        with pytest.raises(PolicyViolation, match="in force") as caught:
            spans.span(outside)
        assert caught.value.rule == "certificate not in force"


@pytest.mark.parametrize("profile", ["tls-br", "smime-br"])
def test_an_answer_that_would_be_too_short_is_not_given(profile: str) -> None:
    """TLS and S/MIME Baseline Requirements: eight hours at least, so a certificate about to end stops answering.

    OCSP-60.
    """
    spans = governor(profile)
    assert spans.span(VIEW.not_after - 8 * HOUR).next_update == VIEW.not_after
    with pytest.raises(PolicyViolation, match="shorter than 8:00:00") as caught:
        spans.span(VIEW.not_after - 8 * HOUR + timedelta(seconds=1))
    assert caught.value.rule == "validity too short"


def test_the_end_is_announced_long_before() -> None:
    """The warning comes when less than a third of the certificate's life is left, and answers still flow then."""
    spans = governor()
    life = VIEW.not_after - VIEW.not_before
    assert spans.warning(VIEW.not_after - life / 2) == ""
    late = VIEW.not_after - life / 4
    assert "renew it now" in spans.warning(late)
    assert spans.span(late).next_update - late == 4 * DAY


@pytest.mark.parametrize(("profile", "ends_with"), [("pdf-ltv", True), ("acrobat", True), ("tls-br", False)])
def test_no_answer_outlives_a_certificate_in_force(profile: str, *, ends_with: bool) -> None:
    """Evidence kept with a signature is read at its last instant, where the certificate must be in force too."""
    end = NOW + 2 * HOUR
    span = governor(profile).span(NOW, [record(not_after=end), record(not_after=end + HOUR), None])
    assert (span.next_update == end) == ends_with
    expired = governor(profile).span(NOW, [record(not_after=NOW - HOUR)])
    assert expired.next_update == NOW + PROFILES[profile].validity


def test_where_there_is_no_suspension() -> None:
    """TLS Baseline Requirements 4.9.13: a held certificate gets no answer at all; never a good one. OCSP-68."""
    with pytest.raises(PolicyViolation, match="no suspension"):
        governor("tls-br").span(NOW, [record(held=True)])
    assert governor("smime-br").span(NOW, [record(held=True)]).this_update == NOW


def test_a_crl_is_as_old_as_it_is() -> None:
    """Statuses that come from a CRL carry its thisUpdate and nextUpdate, and end with it."""
    crl = CRLSource(None, None, NOW - HOUR, NOW + HOUR)
    span = governor().span(NOW, [record()], crl)
    assert (span.produced_at, span.this_update, span.next_update) == (NOW, NOW - HOUR, NOW + HOUR)
    with pytest.raises(SourceExpired, match="ended"):
        governor().span(NOW + HOUR, [record()], crl)


def test_final_answers_hold_for_ever() -> None:
    """EN 319 411-2 CSS-6.3.10-11: the last answers of a CA that has ended."""
    span = governor(final=True).span(NOW, [record(not_after=NOW + HOUR)])
    assert span.next_update == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_answers_of_one_burst_fall_due_apart() -> None:
    """Different certificates are renewed at different times, within a tenth of the span (RFC 9919 §7.1). OCSP-50."""
    spans = governor()
    due = {
        spans.span(NOW, [StatusRecord(1, bytes([n]), CertStatus.GOOD, None, None, None, None, 1)]).renew_at
        for n in range(100)
    }
    assert len(due) > 50
    assert all(NOW + 0.9 * HOUR <= at <= NOW + HOUR for at in due)


def test_caches_outside_are_promised_no_more_than_we_keep() -> None:
    """The max-age is bounded by its setting and by our own renewal, and never negative."""
    spans = governor(max_age=timedelta(minutes=5))
    renew_at = NOW + HOUR
    for later, seconds in ((timedelta(0), 300), (timedelta(minutes=56), 240), (HOUR, 0), (9 * DAY, 0)):
        assert spans.seconds_to_keep(NOW + later, renew_at) == seconds


def test_a_certificate_that_ended_after_the_crl_was_made() -> None:
    """Its answer is as old as the CRL, and still in force: nextUpdate is never in the past."""
    crl = CRLSource(None, None, NOW - 5 * HOUR, NOW + 20 * HOUR)
    span = governor("pdf-ltv").span(NOW, [record(not_after=NOW - HOUR)], crl)
    assert (span.this_update, span.next_update) == (crl.this_update, crl.next_update)
