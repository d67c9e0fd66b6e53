"""The endurance run in small, and runs of authorities with a defect, which it must find out."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from support.endure import BACKUP, IMMEDIATE, KILL_DATABASE, RESTORE, endure, kill_worker, load, show

pytestmark = pytest.mark.timeout(240)
# The worker leases an epoch between backup and restore, and after the restore the same one again.
SMALL = (
    (0.1, BACKUP),
    (0.3, kill_worker(0)),
    (0.5, KILL_DATABASE),
    (0.7, RESTORE),
    (0.8, kill_worker(0)),
    (1.0, IMMEDIATE),
)


async def test_every_fault_once(tmp_path: Path) -> None:
    """Two workers, eight clients, and everything that may happen to them: workers killed, PostgreSQL killed and shut
    down at once, yesterday's backup put back. Every granted token is on record, no serial number came twice, although
    epochs and counters did, and every refusal has the protocol's word.

    TSA-T3, TSA-R9.
    """
    outcome = await endure(tmp_path, 3000, SMALL)
    show(outcome, Console(width=120))
    assert outcome.faults() == []
    assert not outcome.lost
    assert not outcome.duplicates
    assert [struck.name for struck in outcome.struck] == [fault.name for _, fault in SMALL]
    assert len(outcome.ledger.granted) >= 3000
    assert outcome.counted_twice > 0
    assert set(outcome.ledger.refused) <= {"systemFailure", "(nobody there)", "(connection broke)"}


async def test_full_speed_until_the_database_is_gone(tmp_path: Path) -> None:
    """Many clients at full speed, then an immediate shutdown of PostgreSQL: what was granted is on record."""
    outcome = await load(tmp_path, 2.0, clients=32, workers=2)
    assert outcome.faults() == []
    assert len(outcome.ledger.granted) > 100
    assert outcome.ledger.refused["systemFailure"] > 0


async def test_numbers_without_chance_are_found_out(tmp_path: Path) -> None:
    """Serial numbers without their random part come twice once a backup is restored, and the run says so."""
    plan = ((0.2, BACKUP), (0.4, kill_worker(0)), (0.9, RESTORE), (0.9, kill_worker(0)))
    outcome = await endure(tmp_path, 300, plan, workers=1, module=("support.endure_broken", "counted"))
    assert outcome.duplicates
    assert any("came twice" in fault for fault in outcome.faults())


@pytest.mark.parametrize("defect", ["hasty", "dreamy"])
async def test_tokens_without_record_are_found_out(tmp_path: Path, defect: str) -> None:
    """A reply that does not wait for its record, or a commit that is not on disk when it returns: an immediate shutdown
    of PostgreSQL takes records away whose tokens clients hold, and the run says so.
    """
    # Twice, because with ill luck the first one comes at the very moment when everything happens to be on disk.
    plan = ((0.5, IMMEDIATE), (1.0, IMMEDIATE))
    outcome = await endure(tmp_path, 300, plan, workers=1, module=("support.endure_broken", defect))
    assert outcome.lost
    assert any("not on record" in fault for fault in outcome.faults())
