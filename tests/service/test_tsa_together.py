"""Tokens of one turn of the event loop are made together: what they share, and what one that fails does to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lakthan.errors import SignerUnusable
from lakthan.keys.line import Line, asker
from lakthan.keys.software import SoftwareSigner
from lakthan_tsa.in_hand import NotTogether
from lakthan_tsa.profiles import Profile
from lakthan_tsa.self_check import SelfCheck
from lakthan_tsa.service import TSAService
from support.tsa import Authority, new_unit, request_for, running_tsa, tst_info_of

_GRANTED = "lakthan_tsa_commit_tokens_sum"


@dataclass
class Turn:
    """The service of the running authority, asked without HTTP, so that the test says what comes in one turn."""

    authority: Authority
    service: TSAService
    profile: Profile
    told: list[bytes | Exception] = field(default_factory=list)

    async def ask(self, *numbers: int, broken: Callable[[bytes | Exception], None] | None = None) -> None:
        """Requests in one turn, the first of them by somebody who is `broken`; returns when all have been told."""
        self.told = []
        expected = len(numbers)
        if broken is not None:
            expected -= 1
        for position, number in enumerate(numbers):
            told = broken if broken is not None and position == 0 else self.told.append
            assert self.service.begin(request_for(bytes([number]) * 32, cert_req=True), self.profile, told)
        async with asyncio.timeout(20):
            while len(self.told) < expected:  # noqa: ASYNC110 - a callback says it, and nothing to wait for
                await asyncio.sleep(0.005)

    @property
    def kinds(self) -> list[str]:
        """What each was told."""
        return ["token" if isinstance(each, bytes) else type(each).__name__ for each in self.told]

    async def on_record(self) -> float:
        """How many tokens were committed so far."""
        return (await self.authority.metrics())[_GRANTED]


@asynccontextmanager
async def stamping(
    database_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "P-256"
) -> AsyncIterator[Turn]:
    """A running authority with a key of this kind."""
    made: list[tuple[TSAService, Profile]] = []
    genuine = TSAService.__init__

    def noted(self: TSAService, profiles: Any, **given: Any) -> None:  # noqa: ANN401 - as the original's
        genuine(self, profiles, **given)
        made.append((self, profiles[0]))

    monkeypatch.setattr(TSAService, "__init__", noted)
    async with running_tsa(database_url, folder, new_unit(kind)) as authority:
        yield Turn(authority, *made[0])


@pytest.fixture
async def turn(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turn]:
    """The same for most tests."""
    async with stamping(database_url, tmp_path, monkeypatch) as one:
        yield one


@pytest.fixture
async def later(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turn]:
    """With a key that takes its time, and signs in threads."""
    async with stamping(database_url, tmp_path, monkeypatch, "RSA-3072") as one:
        yield one


async def test_one_look_and_one_commit(turn: Turn) -> None:
    """They share their genTime and their commit, and differ in serial number and imprint; whoever comes later has later
    ones.
    """
    await turn.ask(*range(20))
    assert turn.kinds == ["token"] * 20
    infos = [tst_info_of(each) for each in turn.told if isinstance(each, bytes)]
    assert len({info["serial_number"].native for info in infos}) == 20
    assert [info["message_imprint"]["hashed_message"].native[0] for info in infos] == list(range(20))
    [gen_time] = {info["gen_time"].native for info in infos}
    assert await turn.on_record() == 20
    assert (await turn.authority.metrics())["lakthan_tsa_commit_tokens_count"] == 1
    await asyncio.sleep(0.002)
    await turn.ask(1)
    [following] = turn.told
    assert isinstance(following, bytes)
    assert tst_info_of(following)["gen_time"].native > gen_time


async def test_more_than_go_together(turn: Turn) -> None:
    """Of many more than go together, everybody gets his own."""
    await turn.ask(*range(200))
    assert turn.kinds == ["token"] * 200
    imprints = [tst_info_of(each)["message_imprint"]["hashed_message"].native for each in turn.told]  # type: ignore[arg-type]
    assert sorted(imprints) == [bytes([number]) * 32 for number in range(200)]


async def test_sources_take_turns(turn: Turn) -> None:
    """Behind three hundred that one source asked in one turn of the event loop, another source waits for one token, and
    one that comes while they are being stamped does not wait for the end either.
    """
    [at_work] = turn.service._at_work.values()
    first = at_work.serials._counter
    numbers: dict[str, list[int]] = {}

    def ask(source: str) -> None:
        def told(result: bytes | Exception) -> None:
            assert isinstance(result, bytes)
            serial_number = tst_info_of(result)["serial_number"].native.to_bytes(18)
            numbers.setdefault(source, []).append(int.from_bytes(serial_number[6:10]) - first)

        asker.set(source)
        assert turn.service.begin(request_for(bytes(32), cert_req=True), turn.profile, told)

    for _ in range(300):
        ask("flood")
    ask("honest")
    await asyncio.sleep(0)
    assert at_work.serials._counter == first + 64
    ask("late")
    asker.set(None)
    async with asyncio.timeout(20):
        while sum(map(len, numbers.values())) < 302:  # noqa: ASYNC110 - callbacks say it, and nothing to wait for
            await asyncio.sleep(0.005)
    assert numbers["honest"] == [1]
    assert numbers["late"][0] < 66
    assert numbers["flood"] == sorted(numbers["flood"])


async def test_one_that_fails_its_last_look(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused and comes on no record; the others are granted."""
    genuine = SelfCheck.__call__

    def look(self: SelfCheck, token: bytes, request: Any, **given: Any) -> None:  # noqa: ANN401 - as the original's
        if request.hashed_message[0] == 3:
            token = token[:-1] + bytes((token[-1] ^ 1,))
        genuine(self, token, request, **given)

    monkeypatch.setattr(SelfCheck, "__call__", look)
    await turn.ask(*range(6))
    assert sorted(turn.kinds) == ["SignerUnusable", *["token"] * 5]
    assert await turn.on_record() == 5
    assert (await turn.authority.metrics())["lakthan_tsa_self_check_failures_total"] == 1


async def test_a_signature_that_cannot_be_made(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses those that it was to be made together with; the next turn is another matter."""
    left = [2]
    genuine = vars(SoftwareSigner)["sign_at_once"].fget

    def sign_at_once(self: SoftwareSigner) -> object:
        sign = genuine(self)

        def failing(message: bytes) -> bytes:
            left[0] -= 1
            if left[0] == 0:
                raise SignerUnusable("the key did not sign")
            made: bytes = sign(message)
            return made

        return failing

    monkeypatch.setattr(SoftwareSigner, "sign_at_once", property(sign_at_once))
    async with stamping(database_url, tmp_path, monkeypatch) as turn:
        await turn.ask(1, 2, 3)
        assert turn.kinds == ["SignerUnusable"] * 3
        assert await turn.on_record() == 0
        await turn.ask(1, 2, 3)
        assert turn.kinds == ["token"] * 3


async def test_an_epoch_that_ends(turn: Turn) -> None:
    """When it has not so many numbers left they are sent the way that can wait, where each gets his token."""
    await turn.ask(0)
    [at_work] = turn.service._at_work.values()
    at_work.serials._counter = at_work.serials._counters - 1
    await turn.ask(1, 2)
    assert turn.kinds == [NotTogether.__name__] * 2
    for number in (1, 2):
        answered = await turn.service.answer(request_for(bytes([number]) * 32, cert_req=True), turn.profile)
        assert tst_info_of(answered)["message_imprint"]["hashed_message"].native[0] == number
    at_work.serials._counter = at_work.serials._counters
    reply = await turn.authority.post(request_for(bytes([9]) * 32, cert_req=True))  # and over HTTP without a word
    assert tst_info_of(reply.body)["message_imprint"]["hashed_message"].native[0] == 9


async def test_somebody_who_cannot_be_told(turn: Turn) -> None:
    """A defect in one of those who wait keeps nobody else from his token."""

    def broken(_result: bytes | Exception) -> None:
        raise ValueError

    await turn.ask(*range(5), broken=broken)
    assert turn.kinds == ["token"] * 4


async def test_a_key_that_takes_its_time(later: Turn) -> None:
    """What was asked in one turn shares its genTime; each has its own signature, and fewer commits than tokens are
    needed, because signatures come back in bunches.
    """
    await later.ask(*range(20))
    assert later.kinds == ["token"] * 20
    infos = [tst_info_of(each) for each in later.told if isinstance(each, bytes)]
    assert len({info["serial_number"].native for info in infos}) == 20
    assert sorted(info["message_imprint"]["hashed_message"].native[0] for info in infos) == list(range(20))
    assert len({info["gen_time"].native for info in infos}) == 1
    assert await later.on_record() == 20
    metrics = await later.authority.metrics()
    assert metrics["lakthan_tsa_commit_tokens_count"] < 20
    assert metrics['lakthan_tsa_sign_seconds_count{unit="main"}'] == 20


async def test_one_that_fails_its_last_look_in_a_bunch(later: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused and comes on no record; the others that were signed with it are granted."""
    genuine = SelfCheck.__call__

    def look(self: SelfCheck, token: bytes, request: Any, **given: Any) -> None:  # noqa: ANN401 - as the original's
        if request.hashed_message[0] == 3:
            token = token[:-1] + bytes((token[-1] ^ 1,))
        genuine(self, token, request, **given)

    monkeypatch.setattr(SelfCheck, "__call__", look)
    await later.ask(*range(6))
    assert sorted(later.kinds) == ["SignerUnusable", *["token"] * 5]
    assert await later.on_record() == 5


async def test_a_key_that_is_busy(later: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds no place in its line hears so; the others of his turn are granted."""
    [at_work] = later.service._at_work.values()
    [threads] = [at_work.sign_later.__self__]  # type: ignore[union-attr]
    monkeypatch.setattr(threads, "_most_waiting", 3)
    await later.ask(*range(9))
    assert set(later.kinds) == {"SignerBusy", "token"}
    assert later.kinds.count("token") == await later.on_record() >= 3


async def test_each_in_the_turn_of_who_asked(later: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of several sources that are read in one turn wait for a slow key as of their own source."""
    asked: list[object] = []
    genuine = Line.put

    def put(self: Line[Any], waiting: Any) -> None:  # noqa: ANN401 - as the original's
        asked.append(asker.get())
        genuine(self, waiting)

    monkeypatch.setattr(Line, "put", put)
    for number, source in enumerate(("a", "b", "a", "c")):
        asker.set(source)
        request = request_for(bytes([number]) * 32, cert_req=True)
        assert later.service.begin(request, later.profile, later.told.append)
    asker.set(None)
    async with asyncio.timeout(20):
        while len(later.told) < 4:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)
    assert asked == ["a", "b", "c", "a"]
    assert later.kinds == ["token"] * 4


async def test_the_threads_cannot_be_told(later: Turn) -> None:
    """A defect in one of those who wait for a slow key keeps nobody else from his token."""

    def broken(_result: bytes | Exception) -> None:
        raise ValueError

    await later.ask(*range(5), broken=broken)
    assert later.kinds == ["token"] * 4
