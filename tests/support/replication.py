"""Two PostgreSQL servers and a line between them that can be cut.

Each server is in a network namespace of its own, and a pair of virtual interfaces is the only way from one to the
other. Whoever tests talks to each by its UNIX socket, which needs no network. The line is cut as lines are: `silent`
(packets go out and nobody gets them: the neighbour's hardware address is wrong) or `down` (the interface is down).

Needs root, iproute2, and a kernel that lets it make namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

import asyncpg

from lakthan.store.embedded_binaries import (
    Account,
    Binaries,
    choose_account,
    clean_environment,
    copy_binaries,
    find_binaries,
    make_scratch,
    needs_copy,
)
from support.programs import need, need_root

Cut = Literal["silent", "down"]

_PORT = 5432
_NOWHERE = "02:00:00:00:00:ff"
_numbers = count()
_OWNER = "owner"
DATABASE = "lakthan"

# What docs/edge.md recommends; a test reads it there. OF_MACHINE: depends on the disk.
OF_MACHINE = frozenset({"max_slot_wal_keep_size"})
CONNECTION = {"connect_timeout": "5", "tcp_user_timeout": "2000", "keepalives_idle": "2", "keepalives_interval": "1"}
CAPITAL = {
    "wal_level": "logical",
    "wal_sender_timeout": "5s",
    "max_slot_wal_keep_size": "512MB",
}
EDGE = {
    "hot_standby": "on",
    "hot_standby_feedback": "on",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "250ms",
}
# A test's servers need not outlive the machine.
_QUICK = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB", "log_min_messages": "log"}


def _run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")


class Line:
    """Two namespaces, `ends`, and the addresses by which their servers know each other."""

    def __init__(self) -> None:
        number = next(_numbers)
        name = f"lk{os.getpid() % 100_000}x{number}"
        self.ends = (f"{name}a", f"{name}b")
        self.addresses = (f"10.{71 + number % 100}.0.1", f"10.{71 + number % 100}.0.2")
        self._hardware = ("02:00:00:00:00:01", "02:00:00:00:00:02")
        self._cut: Cut | None = None

    def open(self) -> None:
        """Make both ends and connect them."""
        for end in self.ends:
            _run("ip", "netns", "add", end)
        _run(
            "ip",
            "-n",
            self.ends[0],
            "link",
            "add",
            "line",
            "type",
            "veth",
            "peer",
            "name",
            "line",
            "netns",
            self.ends[1],
        )
        for end, address, hardware in zip(self.ends, self.addresses, self._hardware, strict=True):
            _run("ip", "-n", end, "link", "set", "lo", "up")
            _run("ip", "-n", end, "link", "set", "line", "address", hardware)
            _run("ip", "-n", end, "address", "add", f"{address}/24", "dev", "line")
            _run("ip", "-n", end, "link", "set", "line", "up")

    def close(self) -> None:
        """Remove them."""
        for end in self.ends:
            subprocess.run(["ip", "netns", "delete", end], check=False, capture_output=True)

    def cut(self, how: Cut = "silent") -> None:
        """From now on nothing gets through."""
        self._cut = how
        if how == "down":
            _run("ip", "-n", self.ends[1], "link", "set", "line", "down")
        else:
            self._neighbours(_NOWHERE, _NOWHERE)

    def mend(self) -> None:
        """Everything gets through again."""
        if self._cut == "down":
            _run("ip", "-n", self.ends[1], "link", "set", "line", "up")
        elif self._cut == "silent":
            self._neighbours(self._hardware[1], self._hardware[0])
        self._cut = None

    def _neighbours(self, seen_from_first: str, seen_from_second: str) -> None:
        for end, address, hardware in zip(
            self.ends, reversed(self.addresses), (seen_from_first, seen_from_second), strict=True
        ):
            _run(
                "ip", "-n", end, "neighbour", "replace", address, "lladdr", hardware, "dev", "line", "nud", "permanent"
            )


@dataclass
class Server:
    """A PostgreSQL server in a namespace. `folder` has its data, its socket and its log."""

    folder: Path
    namespace: str
    binaries: Binaries
    account: Account
    process: subprocess.Popen[bytes] | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def url(self, login: str = _OWNER) -> str:
        """The database, by the socket."""
        query = urllib.parse.urlencode({"host": str(self.folder), "port": _PORT, "sslmode": "disable"})
        return f"postgresql://{login}@/{DATABASE}?{query}"

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        with (self.folder / "log").open("ab") as log:
            settings = {
                **_QUICK,
                "unix_socket_directories": str(self.folder),
                "listen_addresses": "*",
                "port": str(_PORT),
                "shared_buffers": "32MB",
                **self.settings,
            }
            arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            command = [*self.account.prefix, str(self.binaries.folder / "postgres"), "-D", str(self.data), *arguments]
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                stdout=log,
                stderr=log,
                env=clean_environment(),
                cwd="/",
            )
        deadline = time.monotonic() + 60
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def stop(self, *, at_once: bool = False) -> None:
        """Stop in good order, or `at_once` as a crash would."""
        if self.process is None or self.process.poll() is not None:
            return
        pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, 3 if at_once else 2)  # SIGQUIT, SIGINT
        self.process.wait(60)
        self.process = None

    async def execute(self, *statements: str) -> None:
        """As the owner, each in a transaction of its own."""
        connection = await asyncpg.connect(self.url())
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def fetchval(self, query: str, *values: object) -> object:
        """As the owner."""
        connection = await asyncpg.connect(self.url())
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()


@dataclass
class Servers:
    """The capital's server and the edge's, with the line between them."""

    line: Line
    capital: Server
    edge: Server

    def conninfo(self) -> str:
        """How the edge reaches the capital."""
        words = {"host": self.line.addresses[0], "port": str(_PORT), "user": _OWNER, "dbname": DATABASE, **CONNECTION}
        return " ".join(f"{name}={value}" for name, value in words.items())

    async def follow_physically(self) -> None:
        """Make the edge a standby by a base backup, with a slot."""
        await self.capital.execute("SELECT pg_create_physical_replication_slot('edge')")
        programs = find_binaries(self.capital.binaries.major).folder
        replication = self.conninfo().replace(f"dbname={DATABASE}", "dbname=replication")
        _run(
            *("ip", "netns", "exec", self.line.ends[1], programs / "pg_basebackup", "--pgdata", self.edge.data),
            *("--dbname", replication, "--slot", "edge", "--wal-method=stream", "--checkpoint=fast"),
        )
        (self.edge.data / "standby.signal").touch()
        _own(self.edge.data, self.edge.account)
        self.edge.settings = {**EDGE, "primary_conninfo": self.conninfo(), "primary_slot_name": "edge"}
        self.edge.start()

    async def is_streaming(self) -> bool:
        """True while the edge has a connection over which the capital's log comes."""
        return bool(await self.edge.fetchval("SELECT status = 'streaming' FROM pg_stat_wal_receiver"))


@contextmanager
def servers(
    major: int | None = None, edge_major: int | None = None, *, settings: Mapping[str, str] | None = None
) -> Iterator[Servers]:
    """A running, empty server in the capital, and the place for another at the edge.

    `major`: None is the newest there is; `edge_major` likewise, and with one of its own the edge has a cluster already.
    """
    need_root()
    need("ip")
    with ExitStack() as stack:
        base = make_scratch()
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        line = Line()
        stack.callback(line.close)
        line.open()
        account = choose_account(None)
        made = []
        for name, version, end in (("capital", major, 0), ("edge", edge_major or major, 1)):
            folder = base / name
            folder.mkdir(mode=0o755)
            os.chown(folder, account.uid, account.gid)
            binaries = find_binaries(version)
            if needs_copy(binaries, account):
                (base / f"{name}-programs").mkdir(mode=0o755)
                binaries = copy_binaries(binaries, base / f"{name}-programs")
            server = Server(folder, line.ends[end], binaries, account)
            stack.callback(server.stop)
            made.append(server)
        pair = Servers(line, *made)
        _initdb(pair.capital)
        pair.capital.settings = {**CAPITAL, **(settings or {})}
        pair.capital.start()
        if edge_major is not None:
            _initdb(pair.edge)
            pair.edge.settings = {"wal_level": "logical", **EDGE}
            pair.edge.start()
        yield pair


def _initdb(server: Server) -> None:
    """Make a cluster that trusts everybody: nobody but the tests can reach it."""
    server.data.mkdir(mode=0o700)
    os.chown(server.data, server.account.uid, server.account.gid)
    initdb = [*server.account.prefix, str(server.binaries.folder / "initdb"), f"--pgdata={server.data}"]
    _run(*initdb, f"--username={_OWNER}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
    with (server.data / "pg_hba.conf").open("a") as file:
        file.write("host all all 10.0.0.0/8 trust\nhost replication all 10.0.0.0/8 trust\n")


async def make_database(server: Server) -> None:
    """The empty database."""
    connection = await asyncpg.connect(server.url().replace(f"/{DATABASE}?", "/postgres?"))
    try:
        await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()


def _own(folder: Path, account: Account) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
