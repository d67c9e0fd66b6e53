"""The moves of a simulation, for hypothesis to choose: what clients, CAs, operators, the network and the machine do.

After every move time goes on by a little, a second, or a lot; answers come when they come. At the end everything heals,
and the process must say what is on record. One seed or one failing example is one history, on every machine.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import ClassVar

import structlog
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lakthan.store.records import Change, ChangeRequest, CRLReason, CRLSource
from support.simulated_database import Refused, revoked_whole
from support.simulated_oracle import Asked, Oracle
from support.simulated_responder import MANY, QUICK, SERIALS, SLOW, World, material

AUTHORITIES = st.sampled_from((QUICK, SLOW))
SERIAL = st.sampled_from(SERIALS)
PAUSES = st.sampled_from((0.0, 0.0, 0.0002, 0.001, 0.01, 0.05, 0.5, 1.1, 2.5, 3.1, 11.0, 41.0))
DELAYS = st.sampled_from((0.0002, 0.001, 0.02, 0.3, 1.5, 2.9))
_LONG = st.sampled_from((0.5, 2.0, 2.9, 3.1, 8.0, 30.0, 3600.0))
_HEAD = b"POST / HTTP/1.1\r\nHost: simulated\r\nContent-Length: %d\r\n\r\n"


class Simulation(RuleBasedStateMachine):
    """One history. `counts`: what was done in all histories, for the command to show."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        structlog.configure(processors=[self._logged])
        self.defects: list[str] = []
        self.nonces = 0

    def _logged(self, _logger: object, method: str, event: structlog.typing.EventDict) -> str:
        if "defect" in str(event.get("event")) or method == "exception":
            self.defects.append(str(event))
        raise structlog.DropEvent

    @initialize(seed=st.integers(0, 2**32 - 1), issued=st.sets(st.tuples(AUTHORITIES, SERIAL), min_size=1))
    def begin(self, seed: int, issued: set[tuple[int, bytes]]) -> None:
        """A process that hears the changes, and some certificates on record."""
        self.world = World(seed)
        self.oracle = Oracle(self.world)
        for authority, serial in sorted(issued):
            self._record(ChangeRequest(authority, serial, Change.ISSUE))
        self._go_on(0.1)

    # ---- clients -----------------------------------------------------------------------------------------------------

    @rule(authority=AUTHORITIES, serial=SERIAL, sha1=st.booleans(), nonce=st.booleans(), times=st.integers(1, 3))
    def ask_on_the_wire(self, authority: int, serial: bytes, *, sha1: bool, nonce: bool, times: int) -> None:
        """The same question a few times, with a little time in between: signed, remembered, ready made."""
        for _ in range(times):
            asked = self._asked([(authority, serial)], sha1=sha1, nonce=nonce)
            self.world.loop.call_soon(self._ask, asked)
            self._go_on(0.0004)

    @rule(authority=AUTHORITIES, serial=SERIAL, sha1=st.booleans(), nonce=st.booleans(), pause=PAUSES)
    def ask_the_long_way(self, authority: int, serial: bytes, *, sha1: bool, nonce: bool, pause: float) -> None:
        """By aiohttp's edge."""
        asked = self._asked([(authority, serial)], sha1=sha1, nonce=nonce)
        self.world.loop.create_task(self._ask_the_long_way(asked))
        self._go_on(pause)

    @rule(authority=AUTHORITIES, serials=st.lists(SERIAL, min_size=2, max_size=2, unique=True), pause=PAUSES)
    def ask_about_all(self, authority: int, serials: list[bytes], pause: float) -> None:
        """About everything at once, so that many look-ups go together, and again after a pause."""
        for serial in serials:
            self.world.loop.call_soon(self._ask, self._asked([(authority, serial)], sha1=False, nonce=False))
            self.world.loop.call_soon(self._ask, self._asked([(authority, serial)], sha1=True, nonce=False))
        self._go_on(pause)

    # ---- CAs ---------------------------------------------------------------------------------------------------------

    @rule(
        authority=AUTHORITIES,
        serial=SERIAL,
        change=st.sampled_from((Change.REVOKE, Change.HOLD, Change.HOLD, Change.UNHOLD, Change.UNHOLD, Change.ISSUE)),
        ends=st.sampled_from((None, None, 5, 45)),
        pause=PAUSES,
    )
    def change_status(self, authority: int, serial: bytes, change: Change, ends: int | None, pause: float) -> None:
        """Whatever is allowed is done, and what is not is refused: nobody comes back from a revocation."""
        not_after = None
        if change is Change.ISSUE and ends is not None:
            not_after = self.world.clock.now().replace(microsecond=0) + timedelta(seconds=ends)
        reason = CRLReason.KEY_COMPROMISE if change is Change.REVOKE else None
        self._record(ChangeRequest(authority, serial, change, revocation_reason=reason, not_after=not_after))
        self._go_on(pause)

    @rule(authority=AUTHORITIES, serials=st.sets(SERIAL, min_size=1), hold=st.booleans(), pause=PAUSES)
    def import_list(self, authority: int, serials: set[bytes], *, hold: bool, pause: float) -> None:
        """A list with more changes than are notified one by one."""
        change = Change.HOLD if hold else Change.REVOKE
        requests = [ChangeRequest(authority, serial, change) for serial in sorted(serials)]
        first = self.world.tables.versions * 2 + 0x1000000  # nobody had these numbers before
        others = range(first, first + MANY + 1)
        requests += [ChangeRequest(authority, number.to_bytes(4, "big"), Change.REVOKE) for number in others]
        self._record(*requests)
        self._go_on(pause)

    # ---- operators ---------------------------------------------------------------------------------------------------

    @rule(authority=AUTHORITIES, which=st.integers(0, 2), pause=PAUSES)
    def roll_over(self, authority: int, which: int, pause: float) -> None:
        """Another key of the authority's responder signs."""
        self.world.process.roll_over(authority, which)
        self.oracle.key_changed(authority, which)
        self.counts["key roll-overs"] += 1
        self._go_on(pause)

    @rule(authority=AUTHORITIES, what=st.sampled_from(("nothing", "nothing", "list", "list", "revoked")), pause=PAUSES)
    def change_authority(self, authority: int, what: str, pause: float) -> None:
        """The authority's record changes: another source of its statuses, or its own certificate is revoked."""
        record, now = self.world.authority(authority), self.world.clock.now().replace(microsecond=0)
        if what == "list":
            crl = CRLSource(None, b"\x01", now - timedelta(seconds=5), now + timedelta(days=9))
            record = type(record)(
                record.id, record.name, record.names, record.public_keys, record.certificates,
                record.revocation_time, record.revocation_reason, crl,
            )  # fmt: skip
        elif what == "revoked" and record.revocation_time is None:
            record = revoked_whole(record, now)
        self._changing(self.world.tables.change_authority, record)
        self.counts["authority changes"] += 1
        self._go_on(pause)

    # ---- network and machine -----------------------------------------------------------------------------------------

    @rule(which=st.sampled_from(("latency", "work", "waking", "signing")), seconds=DELAYS)
    def slow_down(self, which: str, seconds: float) -> None:
        """Messages, statements, wake-ups of sessions or signatures take longer from now on, or less."""
        setattr(self.world, which, seconds)
        self._go_on(0.0)

    @precondition(lambda self: self.world.server.connections)
    @rule(data=st.data(), how=st.sampled_from(("stall", "freeze", "cut")), only_feed=st.booleans(), pause=PAUSES)
    def break_line(self, data: st.DataObject, how: str, *, only_feed: bool, pause: float) -> None:
        """A connection goes silent, its server process is stopped, or it is closed; often the one of the feed."""
        connections = (self.world.server.listening if only_feed else []) or self.world.server.connections
        connection = connections[data.draw(st.integers(0, len(connections) - 1), label="connection")]
        if how == "stall":
            connection.stall()
        elif how == "freeze":
            connection.session.frozen = True
        else:
            connection.terminate()
        self.counts[f"lines: {how}"] += 1
        self._go_on(pause)

    @rule(how=st.sampled_from(("silent", "refuses")), pause=PAUSES)
    def take_server_away(self, how: str, pause: float) -> None:
        """No new connections; what is connected stays, and may be cut as well."""
        setattr(self.world.server, how, True)
        self.counts["servers away"] += 1
        self._go_on(pause)

    @rule(pause=PAUSES)
    def heal(self, pause: float) -> None:
        """Everything is well again."""
        self.world.heal()
        self._go_on(pause)

    @rule(seconds=_LONG, asks=st.booleans(), authority=AUTHORITIES, serial=SERIAL)
    def stand_still(self, seconds: float, *, asks: bool, authority: int, serial: bytes) -> None:
        """The process is stopped while the world goes on, perhaps with a change and a question waiting for it."""
        self.world.loop.stand_still(seconds / 2)
        if asks:
            self._record(ChangeRequest(authority, serial, Change.REVOKE))
        self.world.loop.stand_still(seconds / 2)
        if asks:
            self.world.loop.call_soon(self._ask, self._asked([(authority, serial)], sha1=False, nonce=False))
        self.counts["processes stopped"] += 1
        self._go_on(0.0)

    @rule(pause=PAUSES)
    def wait(self, pause: float) -> None:
        """Time passes."""
        self._go_on(pause)

    # ---- how ---------------------------------------------------------------------------------------------------------

    def _asked(self, keys: list[tuple[int, bytes]], *, sha1: bool, nonce: bool) -> Asked:
        self.counts["questions"] += 1
        self.nonces += 1
        octets = self.nonces.to_bytes(16, "big") if nonce else None
        encoded = material().request(*keys[0], sha1=sha1, nonce=octets)
        clock = self.world.clock
        return Asked(encoded, list(keys), octets, clock.seconds, clock.now())

    def _take(self, asked: Asked) -> None:
        asked.taken, asked.heard = self.world.clock.seconds, self.world.process.real.changes_heard()

    def _ask(self, asked: Asked) -> None:
        self._take(asked)

        def arrived(response: bytes) -> None:
            self.oracle.judge(asked, response[response.index(b"\r\n\r\n") + 4 :])

        self.world.process.ask(_HEAD % len(asked.encoded) + asked.encoded, arrived)

    async def _ask_the_long_way(self, asked: Asked) -> None:
        self._take(asked)
        self.oracle.judge(asked, await self.world.process.ask_the_long_way(asked.encoded))

    def _record(self, *requests: ChangeRequest) -> None:
        try:
            self._changing(self.world.tables.record, requests)
            self.counts["changes"] += 1
        except Refused:
            self.counts["changes refused"] += 1

    def _changing(self, change: object, what: object) -> None:
        waking = self.world.waking
        change(what, lambda: self.world.upto(waking), waking)  # type: ignore[operator]

    def _go_on(self, seconds: float) -> None:
        self.counts["steps"] += 1
        self.world.loop.go_on(seconds)
        problems = self.oracle.lies + self.defects + self.world.loop.failures
        assert not problems, "\n".join(problems)

    def teardown(self) -> None:
        """Everything heals, and the process says what is on record."""
        if not hasattr(self, "world"):
            return
        try:
            if not self.oracle.lies:
                self.world.heal()
                self._go_on(30.0)
                assert self.world.process.real.changes_heard(), "the changes are not heard half a minute after the end"
                before, refused = self.oracle.answered, self.oracle.refused
                for authority, serial in sorted(self.world.tables.certificates):
                    if serial in SERIALS:
                        self.world.loop.call_soon(self._ask, self._asked([(authority, serial)], sha1=False, nonce=True))
                        before += 1
                self._go_on(1.0)
                assert (self.oracle.answered, self.oracle.refused) == (before, refused), "not everybody was answered"
        finally:
            self.counts["answers"] += self.oracle.answered
            self.counts["answers: good"] += self.oracle.good
            self.counts["answers: tryLater"] += self.oracle.refused
            self.world.close()
            structlog.reset_defaults()
