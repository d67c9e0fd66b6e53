"""The harness that breaks things: it plays a fault of each kind, and it can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.play import play
from faults.rows import CAUGHT, FAULTS, broken
from faults.truth import History
from support.programs import need_root

PLAYED = ("PostgreSQL kill −9", "line half open", "worker kill −9")


@pytest.mark.parametrize("name", PLAYED)
async def test_a_fault_leaves_nothing_wrong(name: str, tmp_path: Path) -> None:
    """Under load, with an oracle that looks at every answer: nothing wrong is said, nothing confirmed is lost, and all
    kinds of questions are answered again afterwards. `./run faults` plays all of them.
    """
    need_root()
    [fault] = [each for each in FAULTS if each.name == name]
    played = await play(fault, tmp_path)
    assert played.wrong == []
    assert played.lost == []
    assert played.recovery is not None


@pytest.mark.parametrize(("name", "variant"), CAUGHT)
async def test_a_broken_build_is_caught(name: str, variant: str, tmp_path: Path) -> None:
    """A build with one promise taken out is found out by the oracle, so that its silence means something."""
    need_root()
    played = await play(broken(name, variant), tmp_path)
    assert played.wrong or played.lost


def test_what_an_answer_can_be() -> None:
    """Between asking for a revocation and its acknowledgement both answers are right; after that *good* is for one
    bound more, and no longer; a change that nobody confirmed may be in force or not.
    """
    history = History(bound_seconds=3.0)
    assert history.could_be(b"1", "good", 0.0, 0.1)
    assert not history.could_be(b"1", "revoked", 0.0, 0.1)
    turn = history.ask(b"1", "revoked", 10.0)
    assert not history.could_be(b"1", "revoked", 9.0, 9.9)
    assert history.could_be(b"1", "revoked", 9.0, 10.1)
    assert history.could_be(b"1", "good", 99.0, 99.1)
    assert history.must_be(b"1") is None
    turn.acknowledged = 11.0
    assert history.could_be(b"1", "good", 14.0, 14.1)
    assert not history.could_be(b"1", "good", 14.1, 14.2)
    assert history.must_be(b"1") == "revoked"


def test_a_hold_that_was_lifted() -> None:
    """After a hold and its end *revoked* is right for one bound, then only *good*; what was lifted without word back
    can be either.
    """
    history = History(bound_seconds=3.0)
    history.ask(b"1", "revoked", 10.0).acknowledged = 11.0
    lifted = history.ask(b"1", "good", 20.0)
    assert history.could_be(b"1", "revoked", 40.0, 40.1)
    assert history.could_be(b"1", "good", 40.0, 40.1)
    lifted.acknowledged = 21.0
    assert not history.could_be(b"1", "revoked", 40.0, 40.1)
    assert history.could_be(b"1", "good", 40.0, 40.1)
