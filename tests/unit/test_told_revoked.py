"""A responder never takes a revocation back because its database did."""

from __future__ import annotations

import logging

import pytest

from lakthan.store.records import CertStatus, CRLReason, StatusRecord
from lakthan.store.told import DatabaseWentBack, ToldRevoked

CERTIFICATE = (1, b"\x07")
HOLD = CRLReason.CERTIFICATE_HOLD


def record(
    version: int, reason: CRLReason | None = None, *, revoked: bool = False, serial_number: bytes = b"\x07"
) -> StatusRecord:
    """A status. With a reason it is revoked."""
    status = CertStatus.REVOKED if revoked or reason is not None else CertStatus.GOOD
    return StatusRecord(1, serial_number, status, None, reason, None, None, version)


@pytest.mark.parametrize("later", [None, record(3), record(12)], ids=["not on record", "older", "newer"])
def test_a_final_revocation_is_never_taken_back(later: StatusRecord | None) -> None:
    """What was revoked for good may not be good or unknown afterwards, whatever version the database gives it."""
    told = ToldRevoked()
    told.hear(record(10, revoked=True))
    with pytest.raises(DatabaseWentBack, match="07 of authority 1"):
        told.check(CERTIFICATE, later, told.now())
    told.hear(record(13))
    with pytest.raises(DatabaseWentBack):
        told.check(CERTIFICATE, later, told.now())
    assert told.contradicted == {CERTIFICATE}


def test_it_ends_when_the_revocation_is_on_record_again(caplog: pytest.LogCaptureFixture) -> None:
    """Once the certificate is revoked again, with whatever version, all is well; the log has it once."""
    told = ToldRevoked()
    told.hear(record(10, revoked=True))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(DatabaseWentBack):
                told.check(CERTIFICATE, record(3), told.now())
    assert len(caplog.records) == 1
    told.hear(record(5, revoked=True))
    told.check(CERTIFICATE, record(5, revoked=True), told.now())
    assert not told.contradicted


def test_a_hold_may_end() -> None:
    """A certificate that is released is good, whether that was heard or only read; an older good is refused."""
    heard, missed = ToldRevoked(), ToldRevoked()
    for told in (heard, missed):
        told.hear(record(10, HOLD))
        with pytest.raises(DatabaseWentBack):
            told.check(CERTIFICATE, record(9), told.now())
    heard.hear(record(11))
    heard.check(CERTIFICATE, record(11), heard.now())
    missed.check(CERTIFICATE, record(11), missed.now())
    assert not heard.contradicted
    assert not missed.contradicted


def test_what_was_read_counts_as_told() -> None:
    """A revocation that was only looked up, because it was made before this process lived, is kept too."""
    told = ToldRevoked()
    told.check(CERTIFICATE, record(10, revoked=True), told.now())
    with pytest.raises(DatabaseWentBack):
        told.check(CERTIFICATE, None, told.now())


def test_a_question_that_is_overtaken_is_no_contradiction() -> None:
    """A look-up that was sent before the revocation was heard may well say good: somebody else throws that away."""
    told = ToldRevoked()
    sent = told.now()
    told.hear(record(10, revoked=True))
    told.check(CERTIFICATE, record(9), sent)
    assert not told.contradicted


def test_the_newest_revocations_are_remembered_longest() -> None:
    """Memory is bounded; what is forgotten are the lowest versions, and reading them again does not bring them back at
    the cost of newer ones.
    """
    told = ToldRevoked(most=80)
    serial_numbers = [number.to_bytes(2, "big") for number in range(200)]
    for version, serial_number in enumerate(serial_numbers, 1):
        told.hear(record(version, revoked=True, serial_number=serial_number))
    for version, serial_number in enumerate(serial_numbers[:100], 1):
        told.check((1, serial_number), record(version, revoked=True), told.now())
    for serial_number in serial_numbers[-60:]:
        with pytest.raises(DatabaseWentBack):
            told.check((1, serial_number), None, told.now())
    told.check((1, serial_numbers[0]), None, told.now())
