"""A key takes over from another under load, in running services with several workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from support.rollover import Rollover, roll_over, rolling_ocsp, rolling_tsa

Rolling = Callable[[str, Path], AbstractAsyncContextManager[Rollover]]


@pytest.mark.parametrize("rolling", [rolling_ocsp, rolling_tsa], ids=["ocsp", "tsa"])
async def test_nobody_notices(rolling: Rolling, database_url: str, tmp_path: Path) -> None:
    """Installed, switched at its notBefore by itself, the old one retired: every answer and token verifies, the new key
    signs nothing before its time, and the retired one nothing afterwards, as its own key server can tell.
    """
    async with rolling(database_url, tmp_path) as rollover:
        came = await roll_over(rollover, timedelta(seconds=1), begins=timedelta(seconds=8))
    assert rollover.failures == []
    assert came["by the old key"] > 50
    assert came["by the new key"] > 50
    assert came["by the new key before its notBefore"] == 0
    assert came["by the old key, asked for after its retirement"] == 0
    assert came["signatures of the key server with the old key"] > 0
    assert came["of these after its retirement"] == 0
