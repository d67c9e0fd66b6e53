"""An HSM that sleeps, fails, or is not there yet: its own authority or unit feels it, within bounds, and no other one.

Two HSMs in one process: SoftHSM, and a copy of its library, which shares nothing with it but the folder of tokens.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.x509 import ocsp

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig, TSAProfileConfig, UnitConfig
from lakthan.keys import bounds, late
from lakthan.keys.bounds import Bounds
from lakthan.keys.cryptoki import CryptokiError
from lakthan.keys.pkcs11_token import Library
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from lakthan_ocsp.__main__ import serve
from support.fake_vault import FakeVault
from support.pki import Issued, issue, new_ca, new_responder
from support.programs import need
from support.responder import ACTOR, request_for
from support.running import running, samples
from support.softhsm import MODULE, Token, new_token, tokens_folder
from support.tsa import failure, new_unit, running_tsa, token_of
from support.tsa import request_for as time_request

_DEVICE_ERROR = 0x30


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has its tokens."""
    need("softhsm2-util")
    return tokens_folder(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def token(tokens: Path, tmp_path: Path) -> Token:
    """A token of its own for one test."""
    return new_token(tokens, tmp_path)


class Troubled:
    """An HSM whose signatures go through `instead` while that is set. `calls`: how often it was asked for one."""

    def __init__(self, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = token.home / "another-hsm.so"
        shutil.copy(MODULE, self.module)
        self._token = token
        self.instead: Callable[[], None] | None = None
        self.calls = 0
        library = Library.open(self.module).cryptoki
        sign = library.sign

        def troubled(*arguments: Any) -> bytes:  # noqa: ANN401 - handed on
            self.calls += 1
            if self.instead is not None:
                self.instead()
            return sign(*arguments)

        monkeypatch.setattr(library, "sign", troubled)

    def uri(self, label: str, more: str = "") -> KeyURI:
        """The URI of a key of the token, as this HSM has it."""
        of_softhsm = self._token.uri(label, more=more)
        return KeyURI(of_softhsm.uri.replace(str(MODULE), str(self.module)), of_softhsm.folder)

    def fail(self) -> None:
        """What a broken device does."""
        raise CryptokiError("C_Sign", _DEVICE_ERROR)


@pytest.fixture
def troubled(token: Token, monkeypatch: pytest.MonkeyPatch) -> Troubled:
    """The one that will make trouble."""
    return Troubled(token, monkeypatch)


@dataclass(frozen=True)
class Authority:
    """One of the responder's, with a certificate on record."""

    ca: Issued
    leaf: Issued


@dataclass(frozen=True)
class Room:
    """The running responder."""

    authorities: dict[str, Authority]
    url: str
    admin_url: str
    session: aiohttp.ClientSession

    async def ask(self, name: str, *, anew: bool = True) -> str:
        """The status of an answer of this authority. `anew`: with a nonce, so that it has to be signed."""
        authority = self.authorities[name]
        body = request_for(authority.leaf, authority.ca, nonce=os.urandom(16) if anew else None)
        async with self.session.post(self.url, data=body) as reply:
            return ocsp.load_der_ocsp_response(await reply.read()).response_status.name

    async def signs(self, name: str) -> None:
        """Wait until it does. Two copies of SoftHSM in one process disturb each other while they start."""
        async with asyncio.timeout(30):
            while await self.ask(name) != "SUCCESSFUL":  # noqa: ASYNC110 - the responder says when
                await asyncio.sleep(0.05)

    async def many(self, name: str, count: int) -> set[str]:
        """What so many say that ask it at once."""
        return set(await asyncio.gather(*(self.ask(name) for _ in range(count))))

    async def of_key(self, series: str, key: KeyURI, more: str = "") -> float:
        """A series of a key."""
        found = await samples(self.session, self.admin_url)
        return found[f'lakthan_ocsp_key_{series}{{key="{key.uri.partition("?")[0]}"{more}}}']


@asynccontextmanager
async def serving(database_url: str, home: Path, keys: dict[str, tuple[Issued, Issued, KeyURI]]) -> AsyncIterator[Room]:
    """A responder for these authorities: CA, responder certificate, key."""
    async with AsyncExitStack() as stack:
        pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=2, application_name="test")
        stack.push_async_callback(pool.close)
        authorities, writer = AuthorityAdmin(pool), ChangeWriter(pool)
        configured, known = [], {}
        for name, (ca, identity, key) in keys.items():
            certificate, _ = identity.write(home, name)
            configured.append(ResponderConfig(name, certificate, key))
            authority_id = await authorities.add_authority(name, [ca.der])
            leaf = issue("leaf", ca)
            ends = leaf.certificate.not_valid_after_utc
            await writer.issue(authority_id, leaf.serial_number, not_after=ends, actor=ACTOR)
            known[name] = Authority(ca, leaf)
        config = Config(ocsp=OCSPConfig(configured, DatabaseConfig(database_url), port=0, admin_port=0))
        port, admin_port = await stack.enter_async_context(running(serve, config))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        admin_url = f"http://127.0.0.1:{admin_port}"
        while (await session.get(f"{admin_url}/readyz")).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield Room(known, f"http://127.0.0.1:{port}", admin_url, session)


def three(token: Token, troubled: Troubled, home: Path, more: str = "") -> dict[str, tuple[Issued, Issued, KeyURI]]:
    """An authority whose key lies in the troubled HSM, one in another HSM, one in a file."""
    made = {}
    for name in ("troubled", "other-hsm", "file"):
        ca = new_ca(name)
        identity = new_responder(ca)
        token.put(name, identity.key)
        uris = {
            "troubled": troubled.uri(name, more),
            "other-hsm": token.uri(name, more="&x-waiting=1000"),
            "file": KeyURI(f"file:{name}.key", home),
        }
        made[name] = (ca, identity, uris[name])
    return made


async def test_an_hsm_that_sleeps(database_url: str, token: Token, troubled: Troubled, tmp_path: Path) -> None:
    """The device does not come back from its signatures: as many as it may have at once are under way, as many as may
    wait do so, and the next one hears tryLater at once. Answers from memory and the other authorities' answers go out
    all the time. When the device wakes up, nobody who waited has lost his answer.
    """
    keys = three(token, troubled, tmp_path, "&x-sessions=2&x-waiting=3&x-deadline=60")
    key = keys["troubled"][2]
    wakes_up = threading.Event()
    async with serving(database_url, tmp_path, keys) as room:
        await asyncio.gather(*map(room.signs, keys))
        assert await room.ask("troubled", anew=False) == "SUCCESSFUL"

        def sleep() -> None:
            wakes_up.wait()

        troubled.instead = sleep
        try:
            waiting = [asyncio.create_task(room.ask("troubled")) for _ in range(5)]
            while await room.of_key("signatures_waiting", key) < 3:  # noqa: ASYNC110 - the responder says when
                await asyncio.sleep(0.01)
            assert await room.of_key("signatures_under_way", key) == 2
            assert await room.many("troubled", 20) == {"TRY_LATER"}
            assert await room.many("other-hsm", 50) == {"SUCCESSFUL"}
            assert await room.many("file", 50) == {"SUCCESSFUL"}
            assert await room.ask("troubled", anew=False) == "SUCCESSFUL"
            assert not any(task.done() for task in waiting)
        finally:
            wakes_up.set()
        assert await asyncio.gather(*waiting) == ["SUCCESSFUL"] * 5
        assert await room.of_key("signatures_total", key, ',outcome="busy"') == 20
        assert await room.of_key("signatures_under_way", key) == 0
        assert await room.of_key("circuit_open", key) == 0


async def test_an_hsm_that_fails(
    database_url: str, token: Token, troubled: Troubled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device gives errors, under load: after five failures its key is left alone, which the metrics show; its
    authority says internalError, and every single answer of the others is right meanwhile. When the device works again,
    so does the authority, without a restart.
    """
    monkeypatch.setattr(bounds, "_SECONDS_BETWEEN_PROBES", 3600.0)
    keys = three(token, troubled, tmp_path)
    key = keys["troubled"][2]
    async with serving(database_url, tmp_path, keys) as room:
        await asyncio.gather(*map(room.signs, keys))
        assert await room.of_key("circuit_open", key) == 0
        troubled.instead = troubled.fail
        others = [asyncio.create_task(room.many(name, 100)) for name in ("other-hsm", "file")]
        for _ in range(5):
            assert await room.ask("troubled") == "INTERNAL_ERROR"
        assert await room.of_key("circuit_open", key) == 1
        calls = troubled.calls
        others += [asyncio.create_task(room.many(name, 100)) for name in ("other-hsm", "file")]
        assert await room.many("troubled", 30) == {"INTERNAL_ERROR"}
        assert troubled.calls == calls  # the device is left in peace
        assert await asyncio.gather(*others) == [{"SUCCESSFUL"}] * 4
        assert await room.of_key("signatures_total", key, ',outcome="failed"') == 5
        assert await room.of_key("signatures_total", key, ',outcome="left alone"') == 30
        assert await room.of_key("circuit_open", keys["other-hsm"][2]) == 0

        troubled.instead = None
        (of_this,) = [each for each in Bounds.opened() if each.key == key.uri.partition("?")[0] and each.circuit_open]
        of_this._next_probe = 0.0  # the second is over
        assert await room.ask("troubled") == "SUCCESSFUL"
        assert await room.many("troubled", 30) == {"SUCCESSFUL"}
        assert await room.of_key("circuit_open", key) == 0


@pytest.mark.parametrize("where", ["vault", "hsm"])
async def test_a_key_that_is_away_at_the_start(
    where: str, database_url: str, token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloud that is sealed, or a token without the key, when the responder starts: it starts, the other authority is
    answered, this one says tryLater, and the metrics raise the alarm. As soon as the key can be had, it signs.
    """
    monkeypatch.setattr(late, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(late, "_LONGEST_PAUSE_SECONDS", 0.1)
    vault = FakeVault(tmp_path)
    ca, other = new_ca("late"), new_ca("file")
    identity, in_file = new_responder(ca), new_responder(other)
    vault.put("late", "P-256", identity.key)
    vault.refusal = (503, b'{"errors": ["Vault is sealed"]}')
    with vault.running():
        key = vault.uri("late") if where == "vault" else token.uri("late")
        keys = {"late": (ca, identity, key), "file": (other, in_file, KeyURI("file:file.key", tmp_path))}
        async with serving(database_url, tmp_path, keys) as room:
            assert await room.many("late", 5) == {"TRY_LATER"}
            assert await room.many("file", 20) == {"SUCCESSFUL"}
            assert await room.of_key("circuit_open", key) == 1
            vault.refusal = None
            if where == "hsm":
                await asyncio.to_thread(token.put, "late", identity.key)
            await room.signs("late")
            assert await room.many("late", 20) == {"SUCCESSFUL"}
            assert await room.of_key("circuit_open", key) == 0


async def test_a_unit_in_an_hsm_that_fails(
    database_url: str, token: Token, troubled: Troubled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for time-stamps: the unit's profile refuses with systemFailure, the metrics show the key that is left
    alone, and another profile's unit stamps on.
    """
    monkeypatch.setattr(bounds, "_SECONDS_BETWEEN_PROBES", 3600.0)
    in_hsm, in_file = new_unit(), new_unit()
    token.put("unit", in_hsm.leaf.key)
    key = troubled.uri("unit")
    (tmp_path / "hsm").mkdir()
    certificate, _ = in_hsm.leaf.write(tmp_path / "hsm", "tsu")
    units = {"hsm": UnitConfig(certificate, key), "file": in_file.write(tmp_path / "file")}
    profiles = {"default": TSAProfileConfig(["file"]), "hsm": TSAProfileConfig(["hsm"])}
    open_circuit = f'lakthan_tsa_key_circuit_open{{key="{key.uri.partition("?")[0]}"}}'
    async with running_tsa(database_url, tmp_path, in_file, units=units, profiles=profiles) as authority:
        token_of((await authority.post(time_request(), path="tsa/hsm")).body)
        assert (await authority.metrics())[open_circuit] == 0
        troubled.instead = troubled.fail
        for _ in range(8):
            bits, _ = failure((await authority.post(time_request(), path="tsa/hsm")).body)
            assert bits == {"system_failure"}
            token_of((await authority.post(time_request())).body)
        assert (await authority.metrics())[open_circuit] == 1
