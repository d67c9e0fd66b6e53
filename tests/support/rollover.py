"""A rollover under load: keys come and go in a running service, with several workers, while clients go on asking.

The keys are in a key server of the test's own, which writes down what was signed when by which key: what a retired key
does afterwards nobody has to believe. Every answer and token is verified by other code than the service's.

`python -m support.rollover --seconds 20` does it for OCSP and for time-stamps and prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from asn1crypto import cms, tsp
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from lakthan.config import load
from lakthan.keys import key_list
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan_cli.keys import lists
from support.fake_vault import FakeVault
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import ACTOR
from support.responder import request_for as ocsp_request
from support.tsa import UNIT_EXTENSIONS, TimeStampResp, Unit
from support.tsa import request_for as tsa_request

OLD, NEW = "old", "new"
NEVER = datetime.max.replace(tzinfo=UTC)
_CLIENTS = 6


class SpyVault(FakeVault):
    """Also writes down which key signed when (seconds of the epoch)."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.signed: list[tuple[str, float]] = []

    async def reply(self, request: web.Request, body: bytes) -> web.Response:
        """As Vault does."""
        response = await super().reply(request, body)
        what, _, name = request.path.removeprefix("/v1/transit/").partition("/")
        if what == "sign" and response.status == 200:
            self.signed.append((name, time.time()))
        return response


@dataclass(frozen=True)
class Exchange:
    """What a client sent and got, and when (seconds of the epoch)."""

    sent_at: float
    received_at: float
    request: bytes
    status: int
    body: bytes


@dataclass(frozen=True)
class Verified:
    """An answer or token that holds: which key signed it, and what instant it says."""

    key: str
    instant: datetime


@dataclass
class Rollover:
    """One service with its list, and everything that its clients saw."""

    folder: Path
    url: str
    vault: SpyVault
    ask: Callable[[], bytes]
    verify: Callable[[Exchange], Verified]
    certify: Callable[[timedelta], Issued]
    issued: dict[str, Issued]
    exchanges: list[Exchange] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    retired_at: datetime = NEVER

    async def lakthan(self, *arguments: object) -> str:
        """Run `lakthan keys …` as operators do; gives what it says."""
        command = [sys.executable, "-m", "lakthan_cli", "keys", *(str(each) for each in arguments)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()
        return said.decode()

    async def install(self, begins: timedelta) -> None:
        """Put the new key into the list, with a certificate that is in force in a moment."""
        self.issued[NEW] = self.certify(begins)
        put_into(self.vault, self.folder, NEW, self.issued[NEW])
        await self.lakthan(*install_arguments(self.vault, NEW))

    def retire(self, name: str, after: timedelta) -> None:
        """End a key in a moment: in this process, because a busy machine takes seconds to start a command."""
        self.retired_at = (datetime.now(UTC) + after).replace(microsecond=0)
        path = self.folder / "keys.toml"
        whose = lists.target_of(load(self.folder / "lakthan.toml"), path)
        which = str(self.folder / f"{name}.pem")
        key_list.write(path, lists.retirement(whose, which, at=self.retired_at, force=False).entries)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Clients that ask without a pause, on connections of their own, until the end of the block."""
        stop = asyncio.Event()
        clients = [asyncio.create_task(self._client(stop)) for _ in range(_CLIENTS)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*clients)

    async def _client(self, stop: asyncio.Event) -> None:
        async with aiohttp.ClientSession() as session:
            while not stop.is_set():
                request, sent_at = self.ask(), time.time()
                # Some connections are kept, some are new: both workers are asked.
                headers = {"Connection": "close"} if secrets.randbelow(4) == 0 else {}
                async with session.post(self.url, data=request, headers=headers) as reply:
                    body = await reply.read()
                exchange = Exchange(sent_at, time.time(), request, reply.status, body)
                self.exchanges.append(exchange)
                await asyncio.sleep(0.01)

    async def until_signed_by(self, name: str, alone: timedelta) -> None:
        """Return when this key, and no other, has signed every answer that was asked for in the last moments."""
        async with asyncio.timeout(60):
            while True:
                await asyncio.sleep(0.05)
                since = time.time() - alone.total_seconds()
                last = [each for each in self.exchanges if each.sent_at >= since]
                if (
                    self.exchanges
                    and self.exchanges[0].sent_at < since
                    and len(last) > _CLIENTS
                    and {self.verify(each).key for each in last} == {name}
                ):
                    return

    def judge(self) -> list[tuple[Exchange, Verified]]:
        """Every exchange with what it proves; `failures` has those that prove nothing."""
        judged = []
        for exchange in self.exchanges:
            try:
                judged.append((exchange, self.verify(exchange)))
            except (AssertionError, ValueError, InvalidSignature) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
        return judged

    def signed_after_retirement(self, name: str) -> int:
        """How many signatures the key server made with that key from the instant of its retirement on."""
        return sum(1 for key, at in self.vault.signed if key == name and at >= self.retired_at.timestamp())


def install_arguments(vault: SpyVault, name: str) -> list[object]:
    """How a key of the key server is put into the list."""
    return [
        *("install", "keys.toml", "--config", "lakthan.toml"),
        *("--certificate", f"{name}.pem", "--key", vault.uri(name).uri),
    ]


def put_into(vault: SpyVault, folder: Path, name: str, made: Issued) -> None:
    """The certificate into the folder, and the key into the key server and nowhere else."""
    _, key = made.write(folder, name)
    key.unlink()
    vault.put(name, "P-256", made.key)


@asynccontextmanager
async def rolling_ocsp(database_url: str, folder: Path) -> AsyncIterator[Rollover]:
    """A responder with two workers whose list holds the old key."""
    from service.test_workers import two_workers  # noqa: PLC0415 - the way that operators start it

    ca = new_ca("Public CA")
    issued = {OLD: new_responder(ca)}
    pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=2, application_name="test")
    authority_id = await AuthorityAdmin(pool).add_authority("public-ca", [ca.der])
    certificates = [issue(f"citizen {number}", ca) for number in range(20)]
    for certificate in certificates:
        await ChangeWriter(pool).issue(authority_id, certificate.serial_number, actor=ACTOR)
    await pool.close()

    def ask() -> bytes:
        nonce = secrets.token_bytes(16) if secrets.randbelow(3) else None
        return ocsp_request(secrets.choice(certificates), ca, nonce=nonce)

    def verify(exchange: Exchange) -> Verified:
        return verify_ocsp(exchange, ca, issued)

    def certify(begins: timedelta) -> Issued:
        return new_responder(ca, valid=(begins, timedelta(days=30)))

    settings = f"""
        [ocsp]
        port = 0
        admin_port = 0
        database.url = "{database_url}"
        [[ocsp.responders]]
        authority = "public-ca"
        keys = "keys.toml"
        """
    async with _rolling(folder, settings, issued) as vault, two_workers("lakthan_ocsp", folder / "lakthan.toml") as up:
        yield Rollover(folder, up.url, vault, ask, verify, certify, issued)


@asynccontextmanager
async def rolling_tsa(database_url: str, folder: Path) -> AsyncIterator[Rollover]:
    """A time-stamping unit with two workers, in the same way."""
    from service.test_workers import two_workers  # noqa: PLC0415 - as above

    root = new_ca("Root")
    intermediate = new_ca("Time-Stamping CA", root)
    issued = {OLD: issue("TSU old", intermediate, extensions=UNIT_EXTENSIONS)}
    Unit(issued[OLD], intermediate, root).write(folder)
    settings = f"""
        [tsa]
        port = 0
        admin_port = 0
        clock.mode = "warn"
        database.url = "{database_url}"
        [tsa.units.main]
        keys = "keys.toml"
        chain = "chain.pem"
        [tsa.profiles.default]
        units = ["main"]
        """

    def ask() -> bytes:
        return tsa_request(secrets.token_bytes(32), nonce=secrets.randbits(63), cert_req=True)

    def verify(exchange: Exchange) -> Verified:
        return verify_token(exchange, issued)

    def certify(begins: timedelta) -> Issued:
        return issue("TSU new", intermediate, extensions=UNIT_EXTENSIONS, valid=(begins, timedelta(days=30)))

    async with _rolling(folder, settings, issued) as vault, two_workers("lakthan_tsa", folder / "lakthan.toml") as up:
        yield Rollover(folder, up.url, vault, ask, verify, certify, issued)


@asynccontextmanager
async def _rolling(folder: Path, settings: str, issued: dict[str, Issued]) -> AsyncIterator[SpyVault]:
    """The key server, and the list with the old key."""
    (folder / "lakthan.toml").write_text(settings)
    vault = SpyVault(folder)
    put_into(vault, folder, OLD, issued[OLD])
    with vault.running():
        command = [sys.executable, "-m", "lakthan_cli", "keys", *(str(e) for e in install_arguments(vault, OLD))]
        await asyncio.to_thread(subprocess.run, command, cwd=folder, check=True, capture_output=True)
        yield vault


def verify_ocsp(exchange: Exchange, ca: Issued, issued: dict[str, Issued]) -> Verified:
    """Which responder signed this answer. Raises unless it holds in every way (RFC 6960 §3.2)."""
    assert exchange.status == 200, exchange.status
    response = ocsp.load_der_ocsp_response(exchange.body)
    assert response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL, response.response_status
    request = ocsp.load_der_ocsp_request(exchange.request)
    assert response.serial_number == request.serial_number
    assert response.certificate_status is ocsp.OCSPCertStatus.GOOD
    asked = [each.value for each in request.extensions]
    assert not asked or asked == [each.value for each in response.extensions], "another nonce"
    [certificate] = response.certificates
    certificate.verify_directly_issued_by(ca.certificate)
    _verify_ec(certificate, response.signature, response.tbs_response_bytes)
    produced_at = response.produced_at_utc
    assert certificate.not_valid_before_utc <= produced_at < certificate.not_valid_after_utc
    assert response.next_update_utc is not None
    assert response.this_update_utc.timestamp() <= exchange.received_at < response.next_update_utc.timestamp()
    return Verified(_name_of(certificate, issued), produced_at)


def verify_token(exchange: Exchange, issued: dict[str, Issued]) -> Verified:
    """Which unit signed this token. Raises unless it holds in every way (RFC 3161 §2.2)."""
    assert exchange.status == 200, exchange.status
    response = TimeStampResp.load(exchange.body, strict=True)
    assert response["status"]["status"].native == "granted", response["status"].native
    signed_data: cms.SignedData = response["time_stamp_token"]["content"]
    tst_info: tsp.TSTInfo = signed_data["encap_content_info"]["content"].parsed
    request = tsp.TimeStampReq.load(exchange.request)
    assert tst_info["message_imprint"].dump() == request["message_imprint"].dump()
    assert tst_info["nonce"].native == request["nonce"].native
    [signer] = signed_data["signer_infos"]
    attributes = {each["type"].native: each["values"][0] for each in signer["signed_attrs"]}
    digest = hashes.Hash(hashes.SHA256())
    digest.update(signed_data["encap_content_info"]["content"].contents)
    assert attributes["message_digest"].native == digest.finalize()
    serial_number = signer["sid"].chosen["serial_number"].native
    [certificate] = [
        x509.load_der_x509_certificate(each.chosen.dump())
        for each in signed_data["certificates"]
        if each.chosen.serial_number == serial_number
    ]
    _verify_ec(certificate, signer["signature"].native, signer["signed_attrs"].untag().dump())
    gen_time: datetime = tst_info["gen_time"].native
    assert certificate.not_valid_before_utc <= gen_time <= certificate.not_valid_after_utc
    return Verified(_name_of(certificate, issued), gen_time)


def _verify_ec(certificate: x509.Certificate, signature: bytes, signed: bytes) -> None:
    public_key = certificate.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    public_key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))


def _name_of(certificate: x509.Certificate, issued: dict[str, Issued]) -> str:
    [name] = [name for name, each in issued.items() if each.certificate == certificate]
    return name


async def roll_over(rollover: Rollover, steady: timedelta, begins: timedelta) -> dict[str, Any]:
    """Install, switch, retire, under load all the while; what came of it. `begins`: when the new certificate does."""
    async with rollover.load():
        await rollover.until_signed_by(OLD, steady)
        await rollover.install(begins)
        await rollover.until_signed_by(NEW, steady)
        rollover.retire(OLD, timedelta(seconds=5))
        until = rollover.retired_at + steady + timedelta(seconds=1)
        await asyncio.sleep((until - datetime.now(UTC)).total_seconds())
    judged = rollover.judge()
    retired = rollover.retired_at.timestamp()
    not_before = rollover.issued[NEW].certificate.not_valid_before_utc
    first_new = min(exchange.sent_at for exchange, each in judged if each.key == NEW)
    return {
        "answers": len(rollover.exchanges),
        "failed or unverifiable": len(rollover.failures),
        "by the old key": sum(each.key == OLD for _, each in judged),
        "by the new key": sum(each.key == NEW for _, each in judged),
        "by the new key before its notBefore": sum(each.key == NEW and each.instant < not_before for _, each in judged),
        "first answer by the new key, s after its notBefore": round(first_new - not_before.timestamp(), 2),
        "by the old key, asked for after its retirement": sum(
            each.key == OLD and exchange.sent_at >= retired for exchange, each in judged
        ),
        "signatures of the key server with the old key": Counter(key for key, _ in rollover.vault.signed)[OLD],
        "of these after its retirement": rollover.signed_after_retirement(OLD),
        "longest answer, ms": round(max(each.received_at - each.sent_at for each in rollover.exchanges) * 1000),
    }


async def _measure(seconds: float) -> None:
    steady = timedelta(seconds=seconds / 5)
    rows: dict[str, dict[str, Any]] = {}
    for name, rolling in (("OCSP", rolling_ocsp), ("time-stamps", rolling_tsa)):
        with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "db", durable=False) as server:
            (Path(folder) / "service").mkdir()
            url = server.url(database="postgres")
            await migrate(url)
            async with rolling(url, Path(folder) / "service") as rollover:
                rows[name] = await roll_over(rollover, steady, begins=timedelta(seconds=20))
    width = max(len(what) for what in rows["OCSP"])
    print(f"{''.ljust(width)}  {'OCSP':>12}  {'time-stamps':>12}")
    for what in rows["OCSP"]:
        print(f"{what.ljust(width)}  {rows['OCSP'][what]:>12}  {rows['time-stamps'][what]:>12}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the load goes on, beside the switch")
    asyncio.run(_measure(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
