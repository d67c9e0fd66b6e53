"""What the bench measures with: one PKI, one PostgreSQL with a small and a large table of certificates, the requests,
and our services as real processes.

Promises: everything in the folder is made once and used again, so that ten million certificates are loaded on the first
run only. The rows go straight into the table as the owner of the database can; nothing else in Lakthan may do that.

Trusted: the folder holds private keys of a CA that nobody trusts.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from lakthan.certificates import CertificateView
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from support import tsa
from support.bench_machine import Children, Server, free_port, wait_until_ready
from support.pki import Issued, issue, new_responder
from support.responder import request_for

AUTHORITY = "bench"
SMALL_ROWS = 10_000
_CHUNK_ROWS = 500_000
# Serial number n: eight fixed octets, four that jump about in the index as random ones would, and n itself.
_FIXED = b"@LAKBENC"
_FACTOR, _MODULUS = 48271, 2_147_483_647
_NONCE = b"[sixteen octets]"
_TSA_NONCE = b"8octets."
_IMPRINT = b"[a digest has thirty-two octets]"
_LOGINS = {"ocsp": "lakthan_responder", "tsa": "lakthan_tsa", "registry": "lakthan_registry"}
_FOR_YEARS = (timedelta(days=-1), timedelta(days=3650))


def serial_number(n: int) -> bytes:
    """Of the certificate in row n, counted from 1."""
    return _FIXED + (n * _FACTOR % _MODULUS).to_bytes(4, "big") + n.to_bytes(4, "big")


# In Lua: the last eight octets of it, and other things that are never the same twice.
LUA_SERIAL = f"local function serial(v) return word(v * {_FACTOR} % {_MODULUS}) .. word(v) end\n"
LUA_NONCE = 'rep(format("%08d", n % 100000000), 2)'
LUA_TSA_NONCE = 'format("%08d", n % 100000000)'
LUA_IMPRINT = 'rep(format("%08d", n % 100000000), 4)'


@dataclass(frozen=True)
class Requests:
    """Encoded requests, the varying ones with a mark where something is put in."""

    plain: bytes
    nonced: bytes
    token: bytes

    @property
    def plain_parts(self) -> tuple[bytes, bytes]:
        """Before and after the last eight octets of the serial number."""
        before, after = self.plain.split(serial_number(1))
        return before + _FIXED, after

    @property
    def nonced_parts(self) -> tuple[bytes, bytes]:
        """Before and after the nonce of sixteen octets."""
        before, after = self.nonced.split(_NONCE)
        return before, after

    @property
    def token_parts(self) -> tuple[bytes, bytes, bytes]:
        """Before the imprint of 32 octets, between it and the nonce of eight, and after that."""
        before, rest = self.token.split(_IMPRINT)
        between, after = rest.split(_TSA_NONCE)
        return before, between, after

    @property
    def get_target(self) -> str:
        """The plain request as the target of a GET (RFC 9919 §6)."""
        return "/" + urllib.parse.quote(base64.b64encode(self.plain).decode(), safe="")


class World:
    """Everything that is there before the first measurement. `folder` is used again by later runs."""

    def __init__(self, folder: Path, children: Children, *, server_core: int) -> None:
        self.folder = folder
        self._children = children
        self._server_core = server_core
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = self._keep("ca", _ca_for_years)
        leaf_number = int.from_bytes(serial_number(1), "big")
        self.leaf = issue("leaf", self.ca, serial_number=leaf_number)
        self.leaf.write(folder, "leaf")
        self.responders = {kind: new_responder(self.ca, kind=kind) for kind in ("P-256", "RSA-2048")}
        for kind, responder in self.responders.items():
            responder.write(folder, f"responder-{kind}")
        self.units = {kind: tsa.new_unit(kind) for kind in ("P-256", "RSA-3072")}
        for kind, unit in self.units.items():
            unit.write(folder / f"tsu-{kind}")
        self.requests = Requests(
            request_for(self.leaf, self.ca, algorithm=hashes.SHA1()),
            request_for(self.leaf, self.ca, algorithm=hashes.SHA1(), nonce=_NONCE),
            tsa.request_for(_IMPRINT, nonce=int.from_bytes(_TSA_NONCE, "big"), cert_req=True),
        )
        self.postgres = EmbeddedPostgres(folder / "database")

    def _keep(self, name: str, make: Callable[[], Issued]) -> Issued:
        """The certificate and key of an earlier run, or new ones."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not certificate.exists():
            make().write(self.folder, name)
        private_key = load_pem_private_key(key.read_bytes(), None)
        if not isinstance(private_key, ec.EllipticCurvePrivateKey):
            raise TypeError(name)
        return Issued(x509.load_pem_x509_certificate(certificate.read_bytes()), private_key)

    def raw_key(self, kind: str) -> Path:
        """A private key of this kind, for the bound."""
        tsu = self.folder / f"tsu-{kind}" / "tsu.key"
        return tsu if tsu.exists() else self.folder / f"responder-{kind}.key"

    def load(self, database: str, rows: int, loaded: Callable[[int], None]) -> None:
        """See to it that `database` has this many certificates. `loaded` hears how many it has so far."""
        asyncio.run(self._load(database, rows, loaded))

    async def _load(self, database: str, rows: int, loaded: Callable[[int], None]) -> None:
        owner = await asyncpg.connect(self.postgres.url())
        try:
            if not await owner.fetchval("SELECT true FROM pg_database WHERE datname = $1", database):
                await owner.execute(f"CREATE DATABASE {database}")
        finally:
            await owner.close()
        url = self.postgres.url(database=database)
        await migrate(url)
        await self.postgres.ensure_logins(_LOGINS)
        connection = await asyncpg.connect(url, command_timeout=600)
        try:
            # Triggers and rights are for those who change things; this is scenery.
            await connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
            authority_id = await self._authority(connection)
            # Of a load that was broken off, the rows are whole chunks.
            there = await connection.fetchval("SELECT coalesce(max(version), 0) FROM certificate_status")
            while there < rows:
                until = min(rows, there + _CHUNK_ROWS)
                await connection.execute(
                    f"""
                    INSERT INTO certificate_status (authority_id, serial_number, cert_status, not_after, version)
                    SELECT $1, $2::bytea || int4send((n * {_FACTOR} % {_MODULUS})::integer) || int4send(n::integer),
                           'good', $3, n
                    FROM generate_series($4::bigint, $5::bigint) AS n ORDER BY 2
                    """,
                    authority_id,
                    _FIXED,
                    datetime(2049, 1, 1, tzinfo=UTC),
                    there + 1,
                    until,
                )
                there = until
                loaded(there)
            await connection.execute("VACUUM (ANALYZE) certificate_status")
            await connection.execute("CHECKPOINT")  # or it would be written while the first rows are measured
        finally:
            await connection.close()

    async def _authority(self, connection: asyncpg.Connection) -> int:
        found: int | None = await connection.fetchval("SELECT id FROM authority WHERE name = $1", AUTHORITY)
        if found is None:
            view = CertificateView.from_der(self.ca.der)
            made = await connection.fetchval("INSERT INTO authority (name) VALUES ($1) RETURNING id", AUTHORITY)
            for table, value in (("name", view.subject), ("key", view.public_key), ("certificate", self.ca.der)):
                column = "public_key" if table == "key" else table
                await connection.execute(
                    f"INSERT INTO authority_{table} (authority_id, {column}) VALUES ($1, $2)", made, value
                )
            found = int(made)
        return found

    def table_size(self, database: str) -> dict[str, int]:
        """Rows, and octets of the table and its indexes."""

        async def ask() -> dict[str, int]:
            connection = await asyncpg.connect(self.postgres.url(database=database))
            try:
                row = await connection.fetchrow(
                    """
                    SELECT coalesce(max(version), 0) AS rows,
                           pg_table_size('certificate_status') + coalesce((SELECT sum(pg_table_size(inhrelid))
                               FROM pg_inherits WHERE inhparent = 'certificate_status'::regclass), 0) AS table_octets,
                           pg_indexes_size('certificate_status') + coalesce((SELECT sum(pg_indexes_size(inhrelid))
                               FROM pg_inherits WHERE inhparent = 'certificate_status'::regclass), 0) AS index_octets
                    FROM certificate_status
                    """
                )
            finally:
                await connection.close()
            return {str(name): int(value or 0) for name, value in dict(row or {}).items()}

        return asyncio.run(ask())

    def ocsp(
        self,
        name: str,
        *,
        database: str,
        kind: str = "P-256",
        workers: int = 1,
        cores: set[int] | None = None,
        **more: int,
    ) -> Server:
        """Start the OCSP responder. `more`: further settings of its table."""
        settings = [
            *(f"{key} = {value}" for key, value in more.items()),
            f'database.url = "{self.postgres.url("ocsp", database)}"',
            "[[ocsp.responders]]",
            f'authority = "{AUTHORITY}"',
            f'certificate = "responder-{kind}.pem"',
            f'key = "file:responder-{kind}.key"',
        ]
        return self._start(name, "ocsp", settings, workers, cores)

    def tsa(self, name: str, *, kind: str = "P-256", self_check: str = "full") -> Server:
        """Start the time-stamp authority."""
        settings = [
            f'self_check = "{self_check}"',
            f'database.url = "{self.postgres.url("tsa", "bench_small")}"',
            'clock.mode = "warn"',  # a machine that measures need not have NTP
            "[tsa.units.main]",
            f'certificate = "tsu-{kind}/tsu.pem"',
            f'chain = "tsu-{kind}/chain.pem"',
            f'key = "file:tsu-{kind}/tsu.key"',
            "[tsa.profiles.default]",
            'units = ["main"]',
        ]
        return self._start(name, "tsa", settings, 1, None)

    def _start(self, name: str, service: str, settings: list[str], workers: int, cores: set[int] | None) -> Server:
        port, admin_port = free_port(), free_port()
        path = self.folder / f"{name}.toml"
        lines = [f"[{service}]", f"port = {port}", f"admin_port = {admin_port}", *settings]
        path.write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-P", "-m", f"lakthan_{service}", "--config", str(path)]
        if workers > 1:
            command += ["--workers", str(workers)]
        child = self._children.start(name, command, cores or {self._server_core})
        wait_until_ready(child, admin_port)
        return Server(child, port)

    def end(self, server: Server) -> None:
        """Stop one before the others."""
        self._children.end(server.child)


def _ca_for_years() -> Issued:
    """The stored rows belong to it, so it must live longer than the certificates of tests."""
    usage = tsa.key_usage(key_cert_sign=True, crl_sign=True)
    return issue("Bench CA", ca=True, extensions=((usage, True),), valid=_FOR_YEARS)
