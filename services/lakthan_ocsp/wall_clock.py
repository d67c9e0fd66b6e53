"""Whether this machine's wall clock may be signed by: thisUpdate and nextUpdate are what it says.

A responder has no time of its own to be sure of, and answers with another machine's clock beside it: the database's. An
hour too late in thisUpdate is an answer that relying parties believe an hour too long. So:

* with every heartbeat of the change feed the database's clock comes along; while the two differ by more than
  `tolerance`, nothing is signed and nothing that was signed is given: tryLater. Nobody knows which of the two is wrong;
* in between, the clock is held against one that nobody can set (CLOCK_BOOTTIME). A step is seen by the very next
  request, and nothing is said until a heartbeat has compared the clocks again: a second, if they agree.

Promise: an answer that leaves is dated by a clock that was within `tolerance` of the database's at the last comparison,
and has gone on evenly since. A clock that nobody has compared yet is believed: a responder is not ready then, and says
only what it reads from the store at that moment; a publisher compares before it signs anything.
"""

from __future__ import annotations

import math
from datetime import timedelta
from time import CLOCK_BOOTTIME, clock_gettime, time
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    from datetime import datetime

_SHORTEST_TOLERANCE = timedelta(seconds=5)
# How far from `offset` is a step: more than a leap second, and than a clock is slewed between two heartbeats.
_STEP_SECONDS = 2.0


def check_tolerance(tolerance: timedelta) -> None:
    """Raises `ConfigError` for one that a healthy clock would not keep."""
    if tolerance < _SHORTEST_TOLERANCE:
        raise ConfigError(f"clock_tolerance must be at least {_SHORTEST_TOLERANCE}: a heartbeat may take that long")


class WallClock:
    """The comparison. `offset`: wall clock less CLOCK_BOOTTIME, in seconds, as it has to be; NaN: not to be believed; a
    plain number, because it is looked at for every answer. `ahead`: seconds by which this machine's clock was ahead of
    the database's; NaN before the first comparison.
    """

    def __init__(self, tolerance: timedelta) -> None:
        self._tolerance_seconds = tolerance.total_seconds()
        self.offset = time() - clock_gettime(CLOCK_BOOTTIME)
        self.ahead = math.nan

    def compare(self, database: datetime) -> None:
        """The database's clock was there a moment ago."""
        wall, since_boot = time(), clock_gettime(CLOCK_BOOTTIME)
        self.ahead = wall - database.timestamp()
        believed = not math.isnan(self.offset)
        if abs(self.ahead) > self._tolerance_seconds:
            self.offset = math.nan
            if believed:
                log.error(
                    "the clocks of this machine and of the database differ: nothing is signed until they agree",
                    seconds_ahead=round(self.ahead, 3),
                )
            return
        if not believed:
            log.info("the clocks of this machine and of the database agree again", seconds_ahead=round(self.ahead, 3))
        elif not self.steady():
            log.warning("the clock of this machine was set", seconds=round(wall - since_boot - self.offset, 3))
        self.offset = wall - since_boot

    def steady(self) -> bool:
        """True while the clock may be signed by."""
        return self.steady_at(clock_gettime(CLOCK_BOOTTIME))

    def steady_at(self, since_boot: float) -> bool:
        """The same for a caller who has just asked CLOCK_BOOTTIME himself."""
        return abs(time() - since_boot - self.offset) < _STEP_SECONDS  # never, if it is NaN

    def problem(self) -> str:
        """What keeps it from being believed; '' when nothing does."""
        if self.steady():
            return ""
        if math.isnan(self.offset):
            return f"this machine's clock is {self.ahead:+.0f} s from the database's; set the one that is wrong"
        return "this machine's clock was set, and the database's has not been heard since"
