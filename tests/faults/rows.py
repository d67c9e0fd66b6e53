"""The faults, one a row of the table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from faults import of_postgres as postgres
from faults import of_the_rest as rest
from faults.world import Setting, World

Deed = Callable[[World], Awaitable[None]]
_PLAIN = Setting()
_DISK = postgres.SlowDisk(300)
_DELAYED = Setting(through=15432)
_HSM = Setting(hsm=True)
_NTP = Setting(ntp=True, own_clock="tsa")
_OWN_CLOCK = Setting(own_clock="ocsp")
_HOUR = 3600.0


@dataclass(frozen=True)
class Fault:
    """`strike` breaks, for `lasts` seconds, `mend` does what an operator would. `before` and `after`: what belongs to
    the stage; `awaits`: what comes by itself, when the clients are at work. `recovers`: what must be served again in
    the end.
    """

    name: str
    strike: Deed
    mend: Deed
    lasts: float = 3.0
    setting: Setting = _PLAIN
    before: Deed | None = None
    after: Deed | None = None
    awaits: Deed | None = None
    recovers: tuple[str, ...] = ("OCSP", "token", "change")


FAULTS = (
    Fault("PostgreSQL stopped (immediate)", postgres.stop_immediate, postgres.start),
    Fault("PostgreSQL kill −9", postgres.kill, postgres.start),
    Fault(
        "disk full",
        postgres.fill_the_disk,
        postgres.make_room,
        before=postgres.onto_a_small_disk,
        after=postgres.off_the_small_disk,
    ),
    Fault("disk slow: 0.3 s a write", _DISK.strike, _DISK.mend, lasts=5.0),
    Fault("all connections taken", postgres.take_all_connections, postgres.give_connections_back, lasts=5.0),
    Fault("failover to the standby", postgres.kill, postgres.fail_over, setting=Setting(standby=True)),
    Fault(
        "data lost, restored from a backup and the log", postgres.lose_data, postgres.restore, before=postgres.back_up
    ),
    Fault("line cut in silence", rest.cut_silently, rest.mend_line, lasts=8.0),
    Fault("line down", rest.cut_down, rest.mend_line, lasts=6.0),
    Fault("line half open", rest.half_open, rest.mend_line, lasts=2.0),
    Fault("line slow: 0.4 s each way", rest.slow_line, rest.quick_line, lasts=5.0, setting=_DELAYED),
    Fault("notifications lost in silence", postgres.freeze_the_feed, postgres.thaw_the_feed, lasts=6.0),
    Fault("HSM slow: 5 s a signature", rest.hsm(5000), rest.hsm(0), lasts=6.0, setting=_HSM),
    Fault("HSM gone", rest.hsm(-1), rest.hsm(0), lasts=4.0, setting=_HSM),
    Fault("HSM gone for long", rest.hsm(-1), rest.hsm(0), lasts=20.0, setting=_HSM),
    Fault("HSM gives garbage", rest.hsm(-2), rest.hsm(0), lasts=4.0, setting=_HSM),
    Fault("authority's clock steps by 2 s", rest.step_clock(2.0), rest.step_clock(0.0), setting=_NTP),
    Fault("authority's clock stands still", rest.freeze_clock, rest.step_clock(0.0), setting=_NTP),
    Fault("one of three time servers lies", rest.lying(1), rest.lying(0), setting=_NTP),
    Fault("two of three time servers lie", rest.lying(2), rest.lying(0), setting=_NTP),
    Fault("time servers silent", rest.silence, rest.speak, lasts=5.0, setting=_NTP),
    Fault("responder's clock an hour ahead", rest.step_clock(_HOUR), rest.step_clock(0.0), setting=_OWN_CLOCK),
    Fault("responder's clock an hour behind", rest.step_clock(-_HOUR), rest.step_clock(0.0), setting=_OWN_CLOCK),
    Fault("responder's clock stands still", rest.freeze_clock, rest.step_clock(0.0), lasts=6.0, setting=_OWN_CLOCK),
    Fault("worker kill −9", rest.kill_workers, rest.both_workers, lasts=0.5),
    Fault("worker stands still", rest.stop_workers, rest.continue_workers, lasts=6.0),
    Fault("worker killed for want of memory", rest.out_of_memory, rest.both_workers, lasts=0.5),
    Fault("worker gets no more memory", rest.no_more_memory, rest.memory_again, lasts=5.0),
    Fault(
        "certificates of responder and unit run out",
        rest.nothing,
        rest.renew,
        lasts=2.0,
        before=rest.hasten_the_end,
        awaits=rest.until_the_end,
    ),
    Fault(
        "the previous release while the schema is migrated",
        rest.migrate_now,
        rest.this_release,
        setting=Setting(previous=True),
    ),
)


def broken(name: str, variant: str) -> Fault:
    """The fault of this name, on a build that has the defect `variant` (`support.fault_broken`)."""
    [fault] = [each for each in FAULTS if each.name == name]
    return replace(fault, setting=replace(fault.setting, broken=variant))


# What the oracle must find: a fault, and a defect that shows in it.
CAUGHT = (
    ("notifications lost in silence", "deaf"),
    ("failover to the standby", "hasty"),
    ("PostgreSQL kill −9", "hasty"),
    ("HSM gives garbage", "trusting"),
    ("certificates of responder and unit run out", "ageless"),
    ("responder's clock an hour ahead", "timeless"),
)
