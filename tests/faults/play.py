"""One fault, played once: a world is made, its clients begin, it breaks, it is mended, and everything is counted."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from faults.clients import Crowd, Heard, OCSPClient, Registrar, TSAClient
from faults.namespaces import inside
from faults.rows import Fault
from faults.service import PATIENCE_SECONDS
from faults.truth import History
from faults.world import DURABLE, World, world
from lakthan.store.feed import BOUND
from support.edge import until
from support.replication import servers

BEFORE_SECONDS = 1.5
AFTER_SECONDS = 1.0
# A change is asked for so often, and everything else so often a second.
_CHANGE_PAUSE_SECONDS = 0.1
_QUESTIONS, _TOKENS = 150.0, 40.0


@dataclass
class Played:
    """How it went. `during`: what was heard while it was broken. `recovery`: seconds from the mending until a question
    of each kind that was sent after it was answered; None when one never was. `failed`: why it could not be played.
    """

    fault: str
    right: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    away: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    during: Counter[str] = field(default_factory=Counter)
    recovery: float | None = None
    failed: str = ""

    @property
    def clean(self) -> bool:
        """Nothing wrong, nothing lost, and everything works again."""
        return not self.failed and not self.wrong and not self.lost and self.recovery is not None


async def play(fault: Fault, folder: Path, servers_settings: dict[str, str] | None = None) -> Played:
    """Play it. Must be called in the main thread of a process that is root."""
    settings = {**DURABLE, "max_connections": "40", **(servers_settings or {})}
    with servers(settings=settings) as pair, inside(pair.line.ends[1]):
        async with world(pair, folder, fault.setting) as made:
            if fault.before is not None:
                await fault.before(made)
            try:
                return await _play(fault, made)
            finally:
                if fault.after is not None:
                    await fault.after(made)


async def _play(fault: Fault, made: World) -> Played:
    heard, history = Heard(), History(BOUND.total_seconds())
    judges = made.judges()
    questions = OCSPClient(heard, history, judges, made.certificates)
    stamps = TSAClient(heard, judges)
    registrar = Registrar(heard, history, made.certificates, made.change)
    played = Played(fault.name)
    async with Crowd() as crowd:
        crowd.ask(questions.ask, made.answering.url, clients=4, per_second=_QUESTIONS)
        crowd.ask(stamps.ask, made.stamping.url, clients=4, per_second=_TOKENS)
        crowd.run(registrar.go_on(_CHANGE_PAUSE_SECONDS))
        await until(lambda: _all_served(made, heard, ("OCSP", "token", "change"), 0.0), seconds=PATIENCE_SECONDS)
        await asyncio.sleep(BEFORE_SECONDS)
        if fault.awaits is not None:
            await fault.awaits(made)
        before = heard.right.copy()
        await fault.strike(made)
        await asyncio.sleep(fault.lasts)
        played.during = heard.right - before
        await fault.mend(made)
        mended = time.monotonic()
        try:
            await until(lambda: _all_served(made, heard, fault.recovers, mended), seconds=PATIENCE_SECONDS)
            played.recovery = max(heard.served_at[kind] for kind in fault.recovers) - mended
        except TimeoutError:
            played.recovery = None
        await asyncio.sleep(AFTER_SECONDS)
    played.right, played.refused, played.away = heard.right, heard.refused, heard.away
    played.wrong = heard.wrong
    played.lost = await _lost(made, heard, history)
    played.wrong += [f"{service.name} logged: {event}" for service in made.services() for event in service.errors()]
    return played


async def _all_served(made: World, heard: Heard, kinds: tuple[str, ...], since: float) -> bool:
    for service in made.services():
        service.check_alive()
    return all(heard.served_at.get(kind, -math.inf) >= since for kind in kinds)


async def _lost(made: World, heard: Heard, history: History) -> list[str]:
    """What was confirmed and is not there."""
    recorded = await made.tokens()
    found = [
        f"a granted token is not on record: {number.hex()}"
        for number, digest in heard.tokens.items()
        if recorded.get(number) != digest
    ]
    stored = await made.statuses()
    for certificate in made.certificates:
        number = certificate.serial_number
        must = history.must_be(number)
        said = stored.get(number)
        if must is not None and (said == "good") != (must == "good"):
            found.append(f"{number.hex()[-8:]} is {said} in the store, and was confirmed to be {must}")
    return found
