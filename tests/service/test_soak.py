"""`./run soak` in small: every rotation once under load, and a responder that leaks is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.soak import plan, soak
from support.soak_clients import USUAL, Rates
from support.soak_judge import judge

FEW = Rates({of: each / 4 for of, each in USUAL.kinds.items()}, changes=2.0)


@pytest.mark.timeout(240)
async def test_everything_rotates_and_nobody_notices(tmp_path: Path) -> None:
    """All services, all clients, every rotation: no wrong answer, nothing lost, no failure that was not announced."""
    (tmp_path / "world").mkdir()
    verdict = judge(await soak(tmp_path / "world", plan(20, FEW, rounds=1), tmp_path / "diary.jsonl"))
    assert verdict.faults == []


@pytest.mark.timeout(240)
async def test_a_leaky_responder_is_found(tmp_path: Path) -> None:
    """It keeps 512 KiB of every answer that it makes, and a descriptor of every tenth; the others keep nothing."""
    (tmp_path / "world").mkdir()
    verdict = judge(await soak(tmp_path / "world", plan(10, leaky=True), tmp_path / "diary.jsonl"))
    assert len(verdict.faults) == 2, verdict.faults
    memory, descriptors = sorted(verdict.faults)
    assert memory.startswith("ocsp: ")
    assert "MiB more" in memory
    assert descriptors.startswith("ocsp: descriptors grew")
