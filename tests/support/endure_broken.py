"""The TSA with one of its promises taken out, to see that the endurance run finds out.

`python -m support.endure_broken VARIANT --config FILE` runs the real service after one patch:

counted  serial numbers are epoch and counter, without the random part
hasty    the reply does not wait for the record
dreamy   commits are not durable when they return (synchronous_commit = off)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any
from unittest.mock import patch

from lakthan.errors import StoreUnavailable
from lakthan.store import pool
from lakthan.store.records import TokenRecord
from lakthan_tsa.__main__ import main
from lakthan_tsa.recorder import Recorder
from lakthan_tsa.serials import SerialNumbers

_take, _record, _parameters = SerialNumbers.take, Recorder.record, pool._parameters
_UNDER_WAY: set[asyncio.Task[None]] = set()


async def take_without_chance(self: SerialNumbers, gen_time: datetime) -> bytes:
    """Epoch and counter alone would do, if no backup were ever restored."""
    return (await _take(self, gen_time))[:-8] + bytes(8)


async def record_later(self: Recorder, record: TokenRecord) -> None:
    """Say that it is recorded, and do it afterwards, perhaps."""

    async def perhaps() -> None:
        try:
            await _record(self, record)
        except StoreUnavailable:
            return  # this is the defect

    task = asyncio.create_task(perhaps())
    _UNDER_WAY.add(task)
    task.add_done_callback(_UNDER_WAY.discard)


def parameters_without_durability(**given: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the original takes
    """The session's settings, with one changed."""
    parameters = _parameters(**given)
    parameters["server_settings"]["synchronous_commit"] = "off"
    return parameters


VARIANTS: dict[str, Callable[[], Any]] = {
    "counted": lambda: patch.object(SerialNumbers, "take", take_without_chance),
    "hasty": lambda: patch.object(Recorder, "record", record_later),
    "dreamy": lambda: patch.object(pool, "_parameters", parameters_without_durability),
}

if __name__ == "__main__":
    with VARIANTS[sys.argv.pop(1)]():
        main()
