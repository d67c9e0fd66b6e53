"""The TSA with one of its promises taken out, to see that the endurance run finds out.

`python -m support.endure_broken VARIANT --config FILE` runs the real service after one patch:

counted  serial numbers are epoch and counter, without the random part
hasty    the reply does not wait for the record
dreamy   commits are not durable when they return (synchronous_commit = off)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from unittest.mock import patch

from lakthan.errors import StoreUnavailable
from lakthan.store import pool
from lakthan.store.records import TokenRecord
from lakthan_tsa.__main__ import main
from lakthan_tsa.recorder import Recorder
from lakthan_tsa.serials import SerialNumbers

_take, _submit, _parameters = SerialNumbers.take_at_once, Recorder.submit, pool._parameters


def take_without_chance(self: SerialNumbers, gen_time: datetime, count: int) -> list[bytes] | None:
    """Epoch and counter alone would do, if no backup were ever restored."""
    taken = _take(self, gen_time, count)
    return None if taken is None else [each[:-8] + bytes(8) for each in taken]


def record_later(self: Recorder, records: Sequence[TokenRecord], told: Callable[[Exception | None], None]) -> None:
    """Say that it is recorded, and do it afterwards, perhaps."""
    asyncio.get_running_loop().call_soon(told, None)
    # Nobody hears whether it was: this is the defect.
    with suppress(StoreUnavailable):
        _submit(self, records, lambda _error: None)


def parameters_without_durability(**given: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the original takes
    """The session's settings, with one changed."""
    parameters = _parameters(**given)
    parameters["server_settings"]["synchronous_commit"] = "off"
    return parameters


VARIANTS: dict[str, Callable[[], Any]] = {
    "counted": lambda: patch.object(SerialNumbers, "take_at_once", take_without_chance),
    "hasty": lambda: patch.object(Recorder, "submit", record_later),
    "dreamy": lambda: patch.object(pool, "_parameters", parameters_without_durability),
}

if __name__ == "__main__":
    with VARIANTS[sys.argv.pop(1)]():
        main()
