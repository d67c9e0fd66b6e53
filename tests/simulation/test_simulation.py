"""No good after the bound, ever: some hundred moves of what `./run simulate` makes thousands of, and its sharp eyes.

Each of the broken builds below is one that a tired person could commit. If the simulation did not catch it, its silence
about the real one would say nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from lakthan.store.feed import ChangeFeed
from lakthan.store.records import Change
from lakthan_ocsp import __main__ as process
from lakthan_ocsp.cache import AnswerCache
from lakthan_ocsp.service import OCSPService
from support.simulate import histories
from support.simulated_machine import Simulation
from support.simulated_responder import QUICK, SERIALS, SLOW

SEED = 20_260_301
ONE = SERIALS[0]
Play = Callable[[Simulation], None]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("lakthan")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


def test_no_good_after_the_bound() -> None:
    """Whatever is revoked, held, lost, cut, stopped, rolled over or expired in between, in any order. OCSP-86."""
    before = Simulation.counts.copy()
    histories(Simulation, 20, 40, SEED, shrink=False)
    done = Simulation.counts - before
    assert done["steps"] > 500
    assert min(done["answers: good"], done["answers"] - done["answers: good"], done["changes"]) > 50


def played(play: Play) -> None:
    """One history, told move by move."""
    history = Simulation()
    try:
        history.begin(SEED, {(authority, serial) for authority in (QUICK, SLOW) for serial in SERIALS})
        play(history)
    finally:
        history.teardown()


def asked_twice(history: Simulation, authority: int = QUICK, *, sha1: bool = False) -> None:
    """Ask until the answer is remembered in all places, and wait until nobody is under way."""
    history.ask_on_the_wire(authority, ONE, sha1=sha1, nonce=False, times=3)
    history.wait(0.1)
    history.ask_on_the_wire(authority, ONE, sha1=sha1, nonce=False, times=3)
    history.wait(0.1)


def revoked(history: Simulation) -> None:
    """A revocation is heard, and asked about at once and later."""
    asked_twice(history)
    history.change_status(QUICK, ONE, Change.REVOKE, None, 0.05)
    asked_twice(history)


def silent(history: Simulation) -> None:
    """The feed goes silent, and then something is revoked; somebody asks when the bound is over."""
    asked_twice(history)
    for connection in history.world.server.listening:
        connection.stall()
    history.change_status(QUICK, ONE, Change.REVOKE, None, 3.1)
    asked_twice(history)


def cut_off(history: Simulation) -> None:
    """The feed is cut and cannot come back; answers are asked for before and after a revocation."""
    history.world.server.refuses = True
    for connection in history.world.server.listening:
        connection.terminate()
    history.wait(0.1)
    asked_twice(history)
    history.change_status(QUICK, ONE, Change.REVOKE, None, 3.1)
    asked_twice(history)


def overtaken(history: Simulation) -> None:
    """The revocation arrives while an answer is being signed by a slow key."""
    history.slow_down("signing", 1.5)
    history.ask_the_long_way(SLOW, ONE, sha1=False, nonce=False, pause=0.05)
    history.change_status(SLOW, ONE, Change.REVOKE, None, 3.1)
    asked_twice(history, SLOW)


def expired(history: Simulation) -> None:
    """Answers are asked for until they have ended."""
    for _ in range(5):
        asked_twice(history)
        history.wait(11.0)


def rolled_over(history: Simulation) -> None:
    """Another key takes over."""
    asked_twice(history)
    history.roll_over(QUICK, 1, 0.05)
    asked_twice(history)


def ca_revoked_unheard(history: Simulation) -> None:
    """The line of the feed is cut and does not come back, while the CA itself is revoked."""
    asked_twice(history)
    history.world.server.refuses = True
    for connection in history.world.server.listening:
        connection.terminate()
    history.change_authority(QUICK, "revoked", 3.1)
    history.ask_the_long_way(QUICK, ONE, sha1=False, nonce=False, pause=1.1)


def ca_revoked_before_the_feed_was_back(history: Simulation) -> None:
    """The CA is revoked while no line holds; the feed comes back, but the line to read the authorities by is silent."""
    asked_twice(history)
    server, real = history.world.server, history.world.process.real
    first, *others = [each for each in server.connections if each not in server.listening]
    first.stall()  # on it the authorities are read from now on, without an end
    server.refuses = True
    for connection in [*others, *server.listening]:
        connection.terminate()
    history.change_authority(QUICK, "revoked", 3.1)
    server.refuses = False
    while not real.feed.trusted:
        history.wait(0.01)
    assert not real.changes_heard()  # the feed hears them, and the authorities have not been read again
    refused = history.oracle.refused
    history.ask_the_long_way(QUICK, ONE, sha1=False, nonce=True, pause=0.1)
    assert history.oracle.refused == refused + 1


def two_spellings(history: Simulation) -> None:
    """The store is quicker than the notification: asked in one spelling, and then in the other."""
    asked_twice(history, SLOW)
    history.slow_down("waking", 2.9)
    history.change_status(SLOW, ONE, Change.REVOKE, None, 0.05)
    history.ask_on_the_wire(SLOW, ONE, sha1=True, nonce=False, times=1)
    history.wait(0.1)
    asked_twice(history, SLOW)


def ended_under_a_list(history: Simulation) -> None:
    """A certificate ends after the list that its status comes from was made."""
    history.teardown()
    history.begin(SEED, {(QUICK, SERIALS[1])})
    history.change_authority(QUICK, "list", 0.1)
    history.change_status(QUICK, ONE, Change.ISSUE, 5, 11.0)
    asked_twice(history)


ALL = (
    *(revoked, silent, cut_off, overtaken, expired, rolled_over, two_spellings, ended_under_a_list),
    *(ca_revoked_unheard, ca_revoked_before_the_feed_was_back),
)


@pytest.mark.parametrize("play", ALL)
def test_the_real_build_stands(play: Play) -> None:
    """Each of the histories that a broken build is caught by goes well with the real one."""
    played(play)


def _nothing(*_: object, **__: object) -> None:
    """What was there is gone."""


def _true(*_: object, **__: object) -> bool:
    return True


def _whatever_its_age(_cache: AnswerCache, answer: Any, _now: object) -> Any:  # noqa: ANN401 - as the method's
    return answer


def _trusting(*connect: Any, **callbacks: Any) -> ChangeFeed:  # noqa: ANN401 - as the feed's
    return ChangeFeed(*connect, **callbacks, bound=timedelta(minutes=1))


async def _as_it_was(self: Any, service: OCSPService) -> None:  # noqa: ANN401 - as the method's
    """The authorities are read when somebody says that they changed, and the process believes that it knows them."""
    self.authorities_known = _true
    service._authorities_known = _true
    while True:
        await self._reload.wait()
        self._reload.clear()
        service.directory = await self.load()
        self._stale = False
        self.cache.drop_all()
        self.feed.give_answers()


def _all_is_young_again(self: Any) -> None:  # noqa: ANN401 - as the method's
    """A new connection for changes, and what was read of the authorities before it counts as just read."""
    self.cache.drop_all()
    self._authorities_changed()


@pytest.mark.parametrize(
    ("play", "broken", "instead"),
    [
        pytest.param(revoked, (AnswerCache, "drop"), _nothing, id="a change drops nothing"),
        pytest.param(cut_off, (process._Process, "changes_heard"), _true, id="a lost feed is ignored"),
        pytest.param(silent, (process, "ChangeFeed"), _trusting, id="trust lasts for a minute"),
        pytest.param(overtaken, (AnswerCache, "unchanged_since"), _true, id="what was overtaken is given"),
        pytest.param(expired, (AnswerCache, "_current"), _whatever_its_age, id="given past its end"),
        pytest.param(rolled_over, (AnswerCache, "drop_all"), _nothing, id="a key that left still speaks"),
        pytest.param(
            ca_revoked_unheard, (process._Process, "keep_directory"), _as_it_was, id="a CA's end goes unheard"
        ),
        pytest.param(
            ca_revoked_before_the_feed_was_back,
            (process._Process, "_ready"),
            _all_is_young_again,
            id="a new connection makes old knowledge young",
        ),
        pytest.param(two_spellings, (AnswerCache, "remember"), _nothing, id="good again after revoked"),
    ],
)
def test_a_broken_build_is_caught(
    monkeypatch: pytest.MonkeyPatch, play: Play, broken: tuple[Any, str], instead: object
) -> None:
    """The simulation can fail."""
    monkeypatch.setattr(*broken, instead)
    with pytest.raises(AssertionError):
        played(play)


def test_the_moves_find_a_broken_build_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to know the history beforehand: chance finds one."""
    monkeypatch.setattr(OCSPService, "_still_so", _true)
    for name in ("drop", "drop_all", "remember"):
        monkeypatch.setattr(AnswerCache, name, _nothing)
    with pytest.raises(AssertionError):
        histories(Simulation, 60, 40, SEED, shrink=False)
