"""The services with one of their promises taken out, to see that the oracle of the faults finds out.

`python -m support.fault_broken VARIANT SERVICE --config FILE` runs the real service after one patch:

deaf      a responder that lost the notifications goes on as if it heard them
hasty     a token leaves before its record
trusting  what an HSM gives is taken for a signature
ageless   certificates that have run out are used all the same
timeless  a responder believes its clock, whatever the database's says
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from lakthan.certificates import CertificateView
from lakthan.errors import StoreUnavailable
from lakthan.keys import pkcs11
from lakthan.store import feed
from lakthan.store.records import TokenRecord
from lakthan_ocsp import __main__ as ocsp
from lakthan_ocsp import governor, wall_clock
from lakthan_tsa import __main__ as tsa
from lakthan_tsa import profiles, unit
from lakthan_tsa.recorder import Recorder

_submit, _check_unit, _govern = Recorder.submit, unit.check_unit, governor.Governor.__init__
_DAY = timedelta(days=1)


def record_later(self: Recorder, records: Sequence[TokenRecord], told: Any) -> None:  # noqa: ANN401 - as the original's
    """Say that it is recorded, and do it afterwards, perhaps."""
    asyncio.get_running_loop().call_soon(told, None)
    # Nobody hears whether it was: this is the defect.
    with suppress(StoreUnavailable):
        _submit(self, records, lambda _error: None)


def never_ends(view: CertificateView) -> unit.UsagePeriod:
    """The unit's certificate lasts a day longer than it says."""
    period = _check_unit(view)
    return replace(period, not_after=period.not_after + _DAY)


def govern_without_end(self: governor.Governor, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the original's
    """So does the responder's."""
    _govern(self, *args, **kwargs)
    self._not_after += _DAY


def _break(stack: ExitStack, variant: str) -> None:
    def put(target: object, name: str, new: object) -> None:
        stack.enter_context(patch.object(target, name, new))

    if variant == "deaf":
        defaults: dict[str, Any] = feed.ChangeFeed.__init__.__kwdefaults__ or {}
        put(feed.ChangeFeed.__init__, "__kwdefaults__", {**defaults, "bound": _DAY})
    elif variant == "hasty":
        put(Recorder, "submit", record_later)
    elif variant == "trusting":
        put(pkcs11, "verify", lambda *_, **__: None)
    elif variant == "ageless":
        put(profiles, "check_unit", never_ends)
        put(governor.Governor, "__init__", govern_without_end)
    elif variant == "timeless":
        put(wall_clock, "_STEP_SECONDS", math.inf)
        put(wall_clock.WallClock, "compare", lambda *_: None)
    else:
        raise SystemExit(f"there is no variant {variant!r}")


if __name__ == "__main__":
    broken, service = sys.argv.pop(1), sys.argv.pop(1)
    with ExitStack() as patches:
        _break(patches, broken)
        (ocsp.main if service == "ocsp" else tsa.main)()
