"""Whether a responder's wall clock may be signed by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lakthan_ocsp import wall_clock
from lakthan_ocsp.wall_clock import WallClock

_NOW = 1_800_000_000.0


class _Machine:
    """The clocks of a machine: `set` steps the one that can be set, `passes` lets time go by on both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.since_boot = _NOW, 5000.0
        monkeypatch.setattr(wall_clock, "time", lambda: self.wall)
        monkeypatch.setattr(wall_clock, "clock_gettime", lambda _which: self.since_boot)
        self.clock = WallClock(timedelta(minutes=1))

    def passes(self, seconds: float) -> None:
        """Time goes by."""
        self.wall += seconds
        self.since_boot += seconds

    def compare(self, ahead: float) -> None:
        """A heartbeat: this machine is so far ahead of the database."""
        self.clock.compare(datetime.fromtimestamp(self.wall - ahead, UTC))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> _Machine:
    """It."""
    return _Machine(monkeypatch)


def test_an_even_clock_is_believed(machine: _Machine) -> None:
    """From the start, and however long it goes on without a step, compared or not."""
    assert machine.clock.problem() == ""
    machine.compare(ahead=0.3)
    machine.passes(86_400.0)
    assert machine.clock.steady()
    assert machine.clock.ahead == pytest.approx(0.3)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 2.5, -2.5])
def test_a_step_is_seen_at_once(machine: _Machine, seconds: float) -> None:
    """By the next request, without a heartbeat, in both directions; a clock that was set back again is believed."""
    machine.compare(ahead=0.0)
    machine.wall += seconds
    assert not machine.clock.steady()
    assert "was set" in machine.clock.problem()
    machine.wall -= seconds
    assert machine.clock.steady()


def test_a_step_that_the_database_confirms(machine: _Machine) -> None:
    """An operator sets a clock right that was half a minute wrong: believed again from the next heartbeat on."""
    machine.compare(ahead=-30.0)
    machine.wall += 30.0
    assert not machine.clock.steady()
    machine.compare(ahead=0.0)
    assert machine.clock.steady()


@pytest.mark.parametrize("ahead", [61.0, -61.0, 3600.0])
def test_two_clocks_that_differ(machine: _Machine, ahead: float) -> None:
    """Beyond the tolerance nothing is believed, however even this machine's clock goes, until they agree again; it is
    said which clock is how far off.
    """
    machine.compare(ahead=ahead)
    assert not machine.clock.steady()
    assert f"{ahead:+.0f} s" in machine.clock.problem()
    machine.compare(ahead=59.0)
    assert machine.clock.steady()


def test_a_clock_that_stands_still(machine: _Machine) -> None:
    """It is believed for as long as it is no further behind than the tolerance."""
    machine.compare(ahead=0.0)
    for second in range(1, 120):
        machine.since_boot += 1.0
        machine.compare(ahead=-float(second))
        assert machine.clock.steady() == (second <= 60)
