"""A private PostgreSQL for one process: ``with EmbeddedPostgres(directory) as server: server.url()``.

This module promises a real PostgreSQL that is there when ``start`` returns, keeps what was committed through every
kind of death, and ends with the process that started it. Its cluster is UTF-8 with C collation and checksums; it asks
everybody for a password (scram-sha-256), and it listens on a Unix socket in a private folder, never on TCP.

It refuses to know tables, migrations and what the logins may do.

The rules it lives by:

- Nothing outside ``directory`` is changed: no user is made, no parent folder opened. What must lie elsewhere lies in a
  folder of its own for temporary files, and goes when the server goes.
- A cluster appears whole or not at all: it is made aside and renamed.
- One process owns the folder; what an earlier owner left running is stopped first.
- ``fsync`` is on. ``durable=False`` is for tests.

Trusted: root, the user who runs this, and, where the server runs as *nobody*, every other program of that user.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import shutil
import urllib.parse
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg

from lakthan.errors import ConfigError
from lakthan.store.embedded_binaries import (
    Account,
    AsRoot,
    Binaries,
    choose_account,
    copy_binaries,
    find_binaries,
    needs_copy,
)
from lakthan.store.embedded_home import LOGINS, OWNER, Home
from lakthan.store.embedded_process import (
    Guarded,
    cluster_name,
    inheritable_number,
    is_alive,
    stop_leftovers,
    wait_until_ready,
)

DATABASE = "lakthan"

_PORT = 5432  # only a part of the socket's name
_SOCKET_PATH_LIMIT = 106  # octets; the kernel's field has 108, the last one zero, and one is left in reserve

_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",  # short statements only; and the wheel has no JIT
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

_HBA = """\
# Written by lakthan. Everybody needs a password, the local user too; there is no TCP.
local all all scram-sha-256
"""


class EmbeddedPostgres:
    """A PostgreSQL server in ``directory/postgres``, started by ``start`` or ``with`` and stopped by ``stop``.

    All methods but ``ensure_logins`` block; asynchronous callers use ``asyncio.to_thread``.

    ``durable=False`` trades safety for speed, for tests. ``binaries`` names the folder of ``postgres`` and ``initdb``;
    ``as_root`` forces how root is left behind (``choose_account``). ``start_limit`` covers recovery after a crash;
    after ``stop_limit`` an orderly stop becomes a quick one, which loses nothing either.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durable: bool = True,
        binaries: Path | None = None,
        as_root: AsRoot | None = None,
        start_limit: timedelta = timedelta(minutes=2),
        stop_limit: timedelta = timedelta(seconds=30),
    ) -> None:
        self._home = Home(directory)
        self._run = self._home.path / "run"
        self._durable = durable
        self._binaries_folder = binaries
        self._as_root = as_root
        self._start_limit = start_limit
        self._stop_limit = stop_limit
        self._server: Guarded | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def socket_directory(self) -> Path:
        """The folder of the server's Unix socket; it is known after ``start``."""
        return self._run

    @property
    def passfile(self) -> Path:
        """The file with the passwords, in the format of libpq's ``.pgpass``."""
        return self._home.passfile

    def url(self, user: str = OWNER, database: str = DATABASE) -> str:
        """Give the DSN for a user: it names the password file and holds no password itself."""
        # The port and the SSL mode are said aloud, or PGPORT and PGSSLMODE of the environment would decide.
        query = {"port": _PORT, "host": self._run, "passfile": self.passfile, "sslmode": "disable"}
        words = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        return f"postgresql://{_quote(user)}@/{_quote(database)}?{words}"

    def start(self) -> None:
        """Make the cluster if there is none, stop what an earlier death left running, and start the server.

        Raises ConfigError with the last lines of the log, or with what else is wrong and what to do.
        """
        if self._home.lock >= 0:
            raise ConfigError(f"the embedded PostgreSQL in {self._home.path} is already started by this object")
        try:
            self._start()
        except OSError as error:
            self.stop()
            raise ConfigError(
                f"the embedded PostgreSQL cannot use {self._home.path}: {error}; "
                "repair that or choose another directory"
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server in good order and give the folder back; without effect when it is not started."""
        server, self._server = self._server, None
        try:
            if server is not None:
                server.end(self._stop_limit)
                # Only if somebody killed the guardian is anything left.
                stop_leftovers(self._home.data)
        finally:
            self._home.close()
            _started.discard(self)

    async def ensure_logins(self, groups: Mapping[str, str | Sequence[str]]) -> None:
        """Make each login of the mapping a member of its group role or roles; roles that exist already are set right.

        Raises ConfigError when a login is unknown or a group role is missing.
        """
        unknown = groups.keys() - set(LOGINS)
        if unknown:
            raise ConfigError(f"unknown logins {sorted(unknown)}; the embedded PostgreSQL has {', '.join(LOGINS)}")
        passwords = self._home.passwords()
        connection = await asyncpg.connect(self.url())
        try:
            async with connection.transaction():
                for login, roles in groups.items():
                    name = _identifier(login)
                    if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", login):
                        await connection.execute(f"CREATE ROLE {name}")
                    # The verifier, not the password: a failed statement is written to the log as a whole.
                    verifier = scram_verifier(passwords[login])
                    await connection.execute(f"ALTER ROLE {name} LOGIN NOSUPERUSER PASSWORD '{verifier}'")
                    for role in [roles] if isinstance(roles, str) else roles:
                        await connection.execute(f"GRANT {_identifier(role)} TO {name}")
        except asyncpg.UndefinedObjectError as error:
            raise ConfigError(f"{error}; run `lakthan db migrate` first, it makes the group roles") from error
        finally:
            await connection.close()

    def let_go_after_fork(self) -> None:
        """Forget the server without stopping it: in a forked child it belongs to the parent."""
        if self._server is not None:
            self._server.let_go()
        self._server = None
        self._home.forget()

    def _start(self) -> None:
        home = self._home
        home.open()
        _started.add(self)
        old = home.data.stat() if home.data.exists() else None
        binaries = find_binaries(int((home.data / "PG_VERSION").read_text()) if old else None, self._binaries_folder)
        account = choose_account(old.st_uid if old else None, self._as_root)
        binaries = self._programs_for(account, binaries)
        passwords = home.passwords()
        for unfinished in home.path.glob("data.new.*"):
            shutil.rmtree(unfinished)
        if old is None:
            self._make_cluster(binaries, account, passwords[OWNER])
        else:
            stop_leftovers(home.data)
            if old.st_uid != account.uid:
                _give(home.data, account)
            self._forget_reused_number()
        self._make_socket_directory(account)
        self._start_server(binaries, account)

    def _programs_for(self, account: Account, binaries: Binaries) -> Binaries:
        """Give the programs, or a copy of them when they lie where the account cannot reach them."""
        if not needs_copy(binaries, account):
            return binaries
        copied = copy_binaries(binaries, self._home.use_scratch())
        if needs_copy(copied, account):
            raise ConfigError(
                f"`{' '.join(account.prefix)}` cannot run the copy of {binaries.folder} in {copied.folder}; "
                "set DATABASE_URL to use a database server of your own"
            )
        return copied

    def _make_cluster(self, binaries: Binaries, account: Account, password: str) -> None:
        """Make the cluster and its database aside, then give it its name."""
        new = self._home.path / f"data.new.{os.getpid()}"
        new.mkdir(mode=0o700)
        os.chown(new, account.uid, account.gid)
        fast = () if self._durable else ("--no-sync",)
        with ExitStack() as stack:
            # Files without a name: the password never lies on the disk in clear but in pgpass.
            secret = stack.enter_context(_memory_file(password))
            statement = stack.enter_context(_memory_file(f'CREATE DATABASE "{DATABASE}";\n'))
            data, descriptors = stack.enter_context(_reachable(new, account))
            initdb = [*account.prefix, str(binaries.folder / "initdb"), *fast]
            initdb += [f"--pgdata={data}", f"--username={OWNER}", f"--pwfile={_descriptor_path(secret)}"]
            initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"]
            self._run_to_end("initdb", initdb, [*descriptors, secret])
            (new / "pg_hba.conf").write_text(_HBA)
            single = [*account.prefix, str(binaries.folder / "postgres"), "--single", "-D", data]
            # Without exit_on_error the single-user mode prints an error and ends as if all were well.
            single += ["-c", "exit_on_error=on", "-c", f"fsync={'on' if self._durable else 'off'}", "postgres"]
            self._run_to_end("CREATE DATABASE", single, [*descriptors, statement], _descriptor_path(statement))
        new.rename(self._home.data)
        _sync_directory(self._home.path)

    def _run_to_end(
        self, what: str, command: Sequence[str], descriptors: Sequence[int], stdin: Path = Path("/dev/null")
    ) -> None:
        """Run a command under guard. It holds the lock too: should we be killed, nobody starts beside it."""
        with self._home.open_log() as log:
            position = log.tell()
            command_end = Guarded(command, log=log, stdin=stdin, descriptors=[*descriptors, self._home.lock]).wait()
        if command_end != 0:
            message = f"the embedded PostgreSQL could not be made: {what} ended with status {command_end}"
            raise ConfigError(self._home.with_log(message, position))

    def _make_socket_directory(self, account: Account) -> None:
        """Make the socket's folder afresh: in the old one a dead server may have left a lock with a reused number."""
        self._run = self._home.path / "run"
        if self._run.exists():
            shutil.rmtree(self._run)
        path = os.fsencode(self._run / f".s.PGSQL.{_PORT}")
        # Comma and quote have a meaning in the server's setting and in the client's DSN.
        if len(path) > _SOCKET_PATH_LIMIT or set(b',"') & set(path):
            self._run = self._home.use_scratch() / "run"
        self._run.mkdir(mode=0o700)
        os.chown(self._run, account.uid, account.gid)

    def _forget_reused_number(self) -> None:
        """Remove ``postmaster.pid`` when its number is a stranger's now; the server would take that for its own kind.

        No server works in the data folder when this is called. A number that is free is left for the server to judge,
        which then looks for shared memory in use as well.
        """
        file = self._home.data / "postmaster.pid"
        try:
            number = file.read_text(errors="replace").split("\n", 1)[0]
        except FileNotFoundError:
            return
        if not number.isdigit() or is_alive(int(number)):
            file.unlink()

    def _start_server(self, binaries: Binaries, account: Account) -> None:
        home = self._home
        with ExitStack() as stack:
            log = stack.enter_context(home.open_log())
            position = log.tell()
            data, data_descriptors = stack.enter_context(_reachable(home.data, account))
            run, run_descriptors = stack.enter_context(_reachable(self._run, account))
            settings = _SETTINGS | {"unix_socket_directories": run, "cluster_name": cluster_name(home.data.stat())}
            settings |= {} if self._durable else _NOT_DURABLE
            command = [*account.prefix, str(binaries.folder / "postgres"), "-D", data]
            command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            descriptors = [*data_descriptors, *run_descriptors]
            self._server = Guarded(command, log=log, scratch=home.scratch, descriptors=descriptors)
        if not wait_until_ready(self._server, home.data, self._start_limit):
            status = self._server.status()
            outcome = "was not ready in time" if status is None else f"ended with status {status} instead of starting"
            raise ConfigError(home.with_log(f"the embedded PostgreSQL in {home.data} {outcome}", position))


def scram_verifier(password: str) -> str:
    """Give what PostgreSQL stores for a password (RFC 5803 §3), with a fresh salt and 4096 rounds."""
    salt, rounds = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${rounds}:{salt_text}${stored_text}:{server_text}"


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _descriptor_path(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


@contextmanager
def _memory_file(text: str) -> Iterator[int]:
    """A file that has a descriptor and no place on the disk."""
    descriptor = inheritable_number(os.memfd_create("lakthan"))
    try:
        os.pwrite(descriptor, text.encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _reachable(folder: Path, account: Account) -> Iterator[tuple[str, list[int]]]:
    """Give a path by which the account reaches its folder, and the descriptors that its command must inherit.

    A folder below /root or another private home cannot be reached by its path without root's rights; through an
    inherited descriptor it can, and no folder above it need be opened to anybody.
    """
    if not account.by_descriptor:
        yield str(folder), []
        return
    descriptor = inheritable_number(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        yield str(_descriptor_path(descriptor)), [descriptor]
    finally:
        os.close(descriptor)


def _give(folder: Path, account: Account) -> None:
    """Make the account the owner of all in the folder and then of the folder, so that a broken run is begun again."""
    for path in (*folder.rglob("*"), folder):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_started: weakref.WeakSet[EmbeddedPostgres] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """In a forked child the parent's lifeline and lock must not live on, or its death would go unseen."""
    for server in list(_started):
        server.let_go_after_fork()


os.register_at_fork(after_in_child=_let_go_in_child)
