"""The release before this one on this one's schema and the other way round: `./run upgrade-check`, in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from support.programs import need
from support.upgrade_check import check, check_out, previous_release, show

# Half a minute on two cores of its own; CI runs it beside the unit tests.
pytestmark = pytest.mark.timeout(600)


async def test_old_code_on_the_new_schema_and_new_code_on_the_old(tmp_path: Path) -> None:
    """While the schema is migrated below them, and on the new one, the previous release's services answer, stamp and
    hear what is pushed without one failure; this release's services wait for the new schema and then begin by
    themselves; and the way back is open.
    """
    need("git")
    outcome = await check(tmp_path, 5)
    show(outcome, Console(width=150))
    assert outcome.faults == []
    steps = [(code, step) for code, _, step, _ in outcome.rows]
    assert ("previous release", "started anew there: the way back") in steps
    assert sum(step.endswith("starts too early") for _, step in steps) == 3


def test_a_clone_without_history_is_told_what_to_do(tmp_path: Path) -> None:
    """When the previous release is not in this clone, the check says how to get it, and does not pass in silence."""
    need("git")
    with pytest.raises(RuntimeError, match="git fetch --unshallow"):
        check_out("0123456789abcdef0123456789abcdef01234567", tmp_path / "nowhere")
    check_out(previous_release(), tmp_path / "previous")
    assert (tmp_path / "previous" / "shared" / "lakthan" / "store" / "migrate.py").is_file()
