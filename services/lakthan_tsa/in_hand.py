"""What is in hand on the way of a time stamp, from the request to the record. `lakthan_tsa.service` walks the way.

Tuples, because each token has one of each and they cost a third of a microsecond, a frozen dataclass two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from lakthan.store.records import TokenRecord
    from lakthan.telemetry.plain import Series
    from lakthan_tsa.authority import Draft, TokenTemplate
    from lakthan_tsa.clock_guard import ClockReading
    from lakthan_tsa.metrics import Tally
    from lakthan_tsa.profiles import Profile, Unit
    from lakthan_tsa.self_check import SelfCheck
    from lakthan_tsa.serials import SerialNumbers
    from lakthan_tsa.syntax import TimeStampReq

    # Called once: with the TimeStampResp that grants a token, or with the reason why there is none.
    Told = Callable[[bytes | Exception], None]


class AtWork(NamedTuple):
    """What a unit needs besides its certificate. `sign_at_once` is None when its key takes its time, and `sign_later`
    when it does not, or is in a device.
    """

    serials: SerialNumbers
    check: SelfCheck
    sign_at_once: Callable[[bytes], bytes] | None
    sign_later: Callable[[bytes, Told], None] | None
    sign_seconds: Series
    tokens: Tally

    @property
    def signs_in_process(self) -> bool:
        """True for a key that needs no task: one in this process."""
        return self.sign_at_once is not None or self.sign_later is not None


class Choice(NamedTuple):
    """Who stamps, and which instant."""

    reading: ClockReading
    unit: Unit
    template: TokenTemplate
    at_work: AtWork


class Asked(NamedTuple):
    """A request that is to be answered together with others of its turn. `source`: see `lakthan.keys.line`."""

    request: TimeStampReq
    told: Told
    source: object


class Unsigned(NamedTuple):
    """A token whose signature is being made."""

    request: TimeStampReq
    profile: Profile
    choice: Choice
    serial_number: bytes
    draft: Draft


class Signed(NamedTuple):
    """Tokens of one unit that passed the last look and are not on record yet. `unsynchronised`: how many of them say
    so. `signed`: when, by `perf_counter`.
    """

    at_work: AtWork
    tokens: list[bytes]
    records: list[TokenRecord]
    told: list[Told]
    unsynchronised: int
    signed: float


class NotTogether(Exception):
    """Something has to be waited for: the request goes to `TSAService.answer`."""
