"""The operator of a soak: everything that rotates in the product is rotated, by the documented ways, under load.

A rotation counts when it shows in what clients get: an answer by the new key, a refusal of the old token. Nothing of
this may cost a client anything, but for the events that are announced: a worker that is killed, a database that goes.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import aiohttp
import asyncpg

from lakthan.errors import LakthanError
from lakthan.keys import key_list
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.pool import open_pool
from lakthan.store.records import CredentialRole
from lakthan_cli.keys import lists
from support.crl import Listed, entry, new_crl
from support.pki import Issued
from support.registry import ALL_SCOPES, new_client, new_server
from support.soak_clients import Clients, post
from support.soak_diary import Diary
from support.soak_oracle import Oracle
from support.soak_upheavals import Step, Upheavals
from support.soak_world import AHEAD, LIVE, World

# Every kind of rotation that must be seen, and how it is seen.
ROTATIONS = {
    "key of the responder": "an answer by the new key; nothing by the old one after its retirement",
    "key of the publisher": "a published answer by the new key, the same",
    "key of the time-stamping unit": "a token by the new key, the same",
    "TLS certificate of the registry": "a new connection shows it",
    "client certificate of a CA": "the new one pushes, the old one is refused after the next CRL",
    "API token of a CA": "the new one pushes, the old one is refused when it was revoked",
    "API token that expires": "it is refused from its end on",
    "secret of a TSA client": "the new one stamps, the old one is refused",
    "CRL imported": "what it alone revokes is revoked",
    "month of tokens dropped": "its partition is gone",
    "idempotency keys forgotten": "those of yesterday are gone",
    "log file (copytruncate)": "lines come into the emptied file",
    "audit file (moved away)": "a new one has lines",
    "configuration and workers (SIGHUP)": "every worker is another",
    "worker ended (SIGTERM)": "another one is in its place",
    "worker killed (SIGKILL)": "another one is in its place",
    "database connections cut": "all kinds of requests succeed again",
    "database restarted": "all kinds of requests succeed again",
    "answers signed anew": "a later producedAt of the same certificate",
    "published answers signed anew": "a later producedAt of the same certificate",
}
_PROOF_SECONDS = 60.0
# Longer than a key list, a TLS file or a client file is looked at.
_LOOKED_AT_SECONDS = 3.0
_OF = {LIVE: "key of the responder", AHEAD: "key of the publisher", "unit": "key of the time-stamping unit"}


class Operator:
    """Does it. What fails is a trouble that no event allows."""

    def __init__(self, world: World, diary: Diary, oracle: Oracle, clients: Clients) -> None:
        self.upheavals = Upheavals(world, diary, clients)
        self._world = world
        self._diary = diary
        self._oracle = oracle
        self._clients = clients
        self._client: Issued | None = None
        self._revoked_clients: list[bytes] = []
        self._token = ""
        self._months = world.months
        self._crls = 0
        self._numbers = itertools.count(1)
        # Nobody renews anything at the desk while the database is being restarted.
        self._quiet = asyncio.Lock()

    async def work(self, calm: Sequence[float], loud: Sequence[float]) -> None:
        """A round of all that is unnoticed at each of the times `calm`, one of `upheavals` at each of `loud`, all in
        seconds of the diary.
        """
        steps, upheavals = self.steps(), self.upheavals.steps()
        span = (calm[1] - calm[0]) / len(steps) if len(calm) > 1 else 0.0
        doors = [(at + number * span, step) for at in calm for number, step in enumerate(steps)]
        events = [(at, upheavals[number % len(upheavals)]) for number, at in enumerate(loud)]
        await asyncio.gather(
            # These two know no database.
            self._each([(at, self.roll_keys) for at in calm]),
            self._each([(at, self.renew_secret) for at in calm]),
            self._each(doors, self._quiet),
            self._each(events, self._quiet),
        )

    async def _each(self, steps: Sequence[tuple[float, Step]], quiet: asyncio.Lock | None = None) -> None:
        for at, step in steps:
            await asyncio.sleep(max(0.0, at - self._diary.now()))
            async with quiet or nullcontext():
                await self.do(step)

    async def begin(self) -> None:
        """The first token and certificate of the CAs."""
        await self.renew_token()
        await self.renew_client()

    def steps(self) -> list[Step]:
        """Of what nobody notices, that which needs the database."""
        return [
            self.renew_tls,
            self.renew_client,
            self.renew_token,
            self.expire_token,
            self.import_crl,
            self.drop_month,
            self.forget_idempotency_keys,
            self.rotate_logs,
        ]

    async def do(self, step: Step) -> None:
        """One step."""
        began = time.monotonic()
        try:
            await step()
        except (AssertionError, LakthanError, OSError, aiohttp.ClientError, asyncpg.PostgresError) as error:
            self._diary.trouble("operator", f"{step.__name__}: {type(error).__name__}: {error}", began)

    # ---- what nobody notices

    async def roll_keys(self) -> None:
        """A new key of each kind takes over, the old one is retired, and those before it leave the list."""
        await asyncio.gather(*(self._roll(of) for of in _OF))

    async def _roll(self, of: str) -> None:
        world = self._world
        old, new = world.keys[of][-1], world.new_key(of)
        await world.install(of, new)
        await world.until(lambda: self._oracle.has_signed(new), f"something signed by {new.name}", _PROOF_SECONDS)
        path = world.folder / "keys" / f"{of}.toml"
        await world.lakthan(
            *("keys", "retire", f"keys/{of}.toml", f"keys/{old.name}.pem", "--config", world.config.name)
        )
        [listed] = [each for each in key_list.read(path) if each.certificate == f"{old.name}.pem"]
        assert listed.retired is not None
        old.retired = listed.retired
        # As the robot does that renews certificates (`lakthan keys reenroll`): a list does not grow for ever.
        with key_list.changing(path):
            now = datetime.now(UTC)
            kept = lists.without_ended(key_list.read(path), path, now)
            key_list.write(path, kept)
        self._diary.seen(_OF[of])

    async def renew_tls(self) -> None:
        """The registry's certificate, in place."""
        server = new_server(self._world.tls)
        self._world.write_tls(server)
        await self._until_async(lambda: self._shows(server), "the registry's new certificate")
        self._diary.seen("TLS certificate of the registry")

    async def _shows(self, server: Issued) -> bool:
        context = ssl.create_default_context(cafile=str(self._world.folder / "tls-root.pem"))
        port = self._world.services["registry"].port
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return shown == server.der

    async def renew_client(self) -> None:
        """The other CA's client certificate: the next one is bound, the old one revoked by its CA."""
        old, old_context = self._client, self._clients.client
        new = new_client(self._world.clients, f"ca-robot {len(self._revoked_clients) + 1}")
        await self._credential(AHEAD, f"client-{len(self._revoked_clients) + 1}", certificate=new)
        context = ssl.create_default_context(cafile=str(self._world.folder / "tls-root.pem"))
        context.load_cert_chain(*new.write(self._world.folder / "pki", "client"))
        self._client, self._clients.client = new, context
        if old is None or old_context is None:
            self._revoked_clients = [b""]  # none yet; only counts
            return
        await self._until_unused(old_context)
        self._revoked_clients.append(entry(old.serial_number, at=datetime.now(UTC).replace(microsecond=0)))
        self._world.write_client_crl(self._revoked_clients[1:])
        await self._until_async(lambda: self._is_refused(old_context, "", "certificate-revoked"), "its refusal")
        self._diary.seen("client certificate of a CA")

    async def renew_token(self) -> None:
        """The one CA's token: the next one is used at once, the old one revoked."""
        old, name = self._clients.token, self._token
        self._token = f"token-{next(self._numbers)}"
        self._clients.token = await self._credential(LIVE, self._token)
        if not old:
            return
        await self._until_unused(old)
        async with self._desk() as admin:
            await admin.revoke(name, actor="soak")
        await self._until_async(lambda: self._is_refused(None, old, "credential-revoked"), "the old token's refusal")
        self._diary.seen("API token of a CA")

    async def expire_token(self) -> None:
        """A token that lasts for seconds."""
        ends = datetime.now(UTC) + timedelta(seconds=5)
        token = await self._credential(LIVE, f"short-{next(self._numbers)}", expires_at=ends)
        await self._until_async(lambda: self._is_refused(None, token, "credential-expired"), "a token's end")
        assert datetime.now(UTC) >= ends, "a token ended before its time"
        self._diary.seen("API token that expires")

    async def _until_unused(self, proof: Hashable) -> None:
        """Nobody shows it any more."""
        await self._world.until(lambda: not self._clients.under_way[proof], "no request is under way", _PROOF_SECONDS)

    @asynccontextmanager
    async def _desk(self) -> AsyncIterator[CredentialAdmin]:
        pool = await open_pool(
            self._world.postgres.url(), role="lakthan_registry", min_size=1, max_size=1, application_name="desk"
        )
        try:
            yield CredentialAdmin(pool)
        finally:
            await pool.close()

    async def _credential(
        self, authority: str, name: str, *, certificate: Issued | None = None, expires_at: datetime | None = None
    ) -> str:
        async with self._desk() as admin:
            _, token = await admin.create(
                name,
                CredentialRole.PUBLISHER,
                expires_at=expires_at or datetime.now(UTC) + timedelta(days=1),
                authority_id=self._world.authority_ids[authority],
                scopes=ALL_SCOPES,
                certificate=None if certificate is None else certificate.der,
                actor="soak",
            )
        return token or ""

    async def _is_refused(self, context: ssl.SSLContext | None, token: str, kind: str) -> bool:
        if context is None:
            context = ssl.create_default_context(cafile=str(self._world.folder / "tls-root.pem"))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"https://127.0.0.1:{self._world.services['registry'].port}/v1/identity"
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=context) as reply:
            text = await reply.text()
            return reply.status == 403 and f'"urn:lakthan:problem:{kind}"' in text.replace(" ", "")

    async def renew_secret(self) -> None:
        """The signers' secret: both are good, then the clients take the new one, then the old one goes."""
        old, new = self._clients.secret, secrets.token_urlsafe(32)
        self._world.write_tsa_clients([_digest(old), _digest(new)])
        await self._until_async(lambda: self._is_told(new, b"200"), "the new secret stamps")
        # One worker knows it; the other one looks as often.
        await asyncio.sleep(_LOOKED_AT_SECONDS)
        self._clients.secret = new
        await self._until_unused(old)
        self._world.write_tsa_clients([_digest(new)])
        await asyncio.sleep(_LOOKED_AT_SECONDS)
        await self._until_async(lambda: self._is_told(old, b"401"), "the old secret stamps no more")
        self._diary.seen("secret of a TSA client")

    async def _is_told(self, secret: str, status: bytes) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._world.services["tsa"].port)
        known = {"Authorization": f"Bearer {secret}", "Connection": "close"}
        # What is no request is refused behind the door, with 200.
        writer.write(post("/tsa/signers", "application/timestamp-query", b"\x30\x00", **known))
        line = await reader.readline()
        writer.close()
        return line.startswith(b"HTTP/1.1 " + status)

    async def import_crl(self) -> None:
        """The CA's CRL by its own books, with three more."""
        self._crls += 1
        population, truth = self._clients.populations[LIVE], self._oracle.truth[LIVE]
        now = datetime.now(UTC).replace(microsecond=0)
        news = [population.good.popleft() for _ in range(3)]
        turns = []
        for serial_number in news:
            population.changed.append(serial_number)
            content = serial_number.to_bytes(16)
            turns.append(truth.ask(content, "revoked", time.monotonic()))
        listed = [each for each, of in truth.turns.items() if truth.must_be(each) == "revoked" and len(of) == 1]
        held = {each.to_bytes(16) for each in population.held}
        contents = {*(each for each in listed if each not in held), *(each.to_bytes(16) for each in news)}
        crl = new_crl(
            self._world.cas[LIVE],
            Listed([entry(each, at=now) for each in contents], self._crls, this_update=now),
        )
        async with aiohttp.ClientSession() as session:
            status, text = await self._clients.call(session, "POST", "/v1/crls", by=LIVE, data=crl)
        assert status == 200, text
        for turn in turns:
            turn.acknowledged = time.monotonic()
        self._diary.seen("CRL imported")

    async def drop_month(self) -> None:
        """`lakthan tsa retention`, while tokens come on record."""
        if not self._months:
            return
        self._months -= 1
        first = datetime.now(UTC).replace(day=1)
        for _ in range(self._months):
            first = (first - timedelta(days=1)).replace(day=1)
        said = await self._world.lakthan(
            *("tsa", "retention", "--drop-before", f"{first:%Y-%m}", "--yes"), DATABASE_URL=self._world.postgres.url()
        )
        assert "dropped 1000 tokens of 1 months" in said, said
        self._diary.seen("month of tokens dropped")

    async def forget_idempotency_keys(self) -> None:
        """What the CAs sent becomes two days old; the next call that has a key forgets it."""
        connection = await asyncpg.connect(self._world.postgres.url())
        try:
            await connection.execute("UPDATE idempotency_key SET at = at - interval '2 days'")
            old = "SELECT count(*) FROM idempotency_key WHERE at < now() - interval '1 day'"
            before = await connection.fetchval(old)
            assert before
            deadline = time.monotonic() + _PROOF_SECONDS
            # Each credential's at its own next call; those of ended ones stay, for nobody calls with them.
            while await connection.fetchval(old) >= before:
                assert time.monotonic() < deadline, "old keys stay"
                await asyncio.sleep(0.2)
        finally:
            await connection.close()
        self._diary.seen("idempotency keys forgotten")

    async def rotate_logs(self) -> None:
        """Log files by copytruncate, the audit file by moving it away."""
        logs = [service.log for service in self._world.services.values()]
        for log in logs:
            log.copy_truncate()
        audit = self._world.audit
        audit.move_away()
        await self._world.until(lambda: _lines(audit.path), "a line in the new audit file", _PROOF_SECONDS)
        await self._world.until(lambda: any(_lines(log.path) for log in logs), "a line in a log", _PROOF_SECONDS)
        self._diary.seen("audit file (moved away)")
        self._diary.seen("log file (copytruncate)")

    async def _until_async(self, true: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + _PROOF_SECONDS
        while True:
            with suppress(ssl.SSLError, ConnectionError):
                if await true():
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(what)
            await asyncio.sleep(0.3)


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _lines(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
