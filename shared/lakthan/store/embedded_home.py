"""The private folder of the embedded PostgreSQL: who owns it, its lock, its passwords and its log.

This module promises that one process at a time uses the folder, that nobody else can look into it, and that its
passwords are made once and kept. The folder holds:

=========== ========================================================================================
``data/``   the cluster
``run/``    the Unix socket (elsewhere when its path would be too long for the kernel)
``pgpass``  the passwords, one line for each login, in the format of libpq (0600)
``log``     what the programs of PostgreSQL say; the older part in ``log.old``
``lock``    the number of the process that uses the folder, and its folder for temporary files
=========== ========================================================================================

It refuses to know how PostgreSQL is started.

The rules it lives by:

- The lock is the kernel's, so it is given back however its holder dies.
- Nothing is written through a file that another user could have put there: the folder is ours or it is refused.

Trusted: root, and the user who runs this.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lakthan.errors import ConfigError
from lakthan.store.embedded_binaries import SCRATCH_PREFIX, make_scratch
from lakthan.store.embedded_process import inheritable_number, is_alive

if TYPE_CHECKING:
    from collections.abc import Mapping

OWNER = "owner"
LOGINS = ("ocsp", "tsa", "registry", "publisher")

_LOG_LIMIT = 8 * 1024 * 1024  # octets
_LOG_LINES_SHOWN = 12
_LOCK_PATIENCE_SECONDS = 10.0  # for an initdb that outlives its killed parent by a moment


class Home:
    """The folder ``directory/postgres``. ``open`` makes it ours, ``close`` gives it back."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory).absolute() / "postgres"
        self.data = self.path / "data"
        self.passfile = self.path / "pgpass"
        self.log = self.path / "log"
        self.lock = -1
        self.scratch: Path | None = None

    def open(self) -> None:
        """Make the folder or check that it is ours, and become its only user. Raises ConfigError when it cannot be."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        owner = self.path.stat().st_uid
        if owner != os.geteuid():
            raise ConfigError(
                f"{self.path} belongs to user {owner} and this process is user {os.geteuid()}; "
                "run as that user or choose another directory"
            )
        self.path.chmod(0o700)
        lock = inheritable_number(os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            self._wait_for(lock)
        except BaseException:
            os.close(lock)
            raise
        self.lock = lock
        for left in map(Path, _lines(lock)[1:]):
            if left.name.startswith(SCRATCH_PREFIX) and left.is_dir() and left.stat().st_uid == os.geteuid():
                shutil.rmtree(left)
        self._write_lock(str(os.getpid()))

    def close(self) -> None:
        """Remove the folder for temporary files and give the lock back; without effect when not open."""
        try:
            if self.scratch is not None and self.scratch.exists():
                shutil.rmtree(self.scratch)
        finally:
            if self.lock >= 0:
                # We hold it no longer. A guard of ours may do so for a moment more: the next one waits for that, and
                # need not be told that we are still there.
                self._write_lock()
            self.forget()

    def forget(self) -> None:
        """Close our end of the lock and touch nothing else, as a forked child must."""
        if self.lock >= 0:
            os.close(self.lock)
        self.lock, self.scratch = -1, None

    def use_scratch(self) -> Path:
        """Make a folder outside, which goes when the server goes; the next ``open`` removes it after a kill."""
        if self.scratch is None:
            self.scratch = make_scratch()
            self._write_lock(str(os.getpid()), str(self.scratch))
        return self.scratch

    def passwords(self) -> dict[str, str]:
        """Give the password of each login; they are made when there is neither a password file nor a cluster.

        A login that a newer Lakthan has and the file has not gets one now. The owner's cannot be made again.
        """
        if not self.passfile.exists():
            if self.data.exists():
                raise ConfigError(
                    f"{self.passfile} is missing, and without it nobody can log in to {self.data}; "
                    "put the file back from your backup"
                )
            self._write_passwords({name: secrets.token_urlsafe(24) for name in (OWNER, *LOGINS)})
        rows = [line.split(":") for line in self.passfile.read_text().splitlines()]
        passwords = {row[3]: row[4] for row in rows if len(row) == 5}
        if OWNER not in passwords:
            raise ConfigError(f"{self.passfile} has no line for {OWNER}; put the file back from your backup")
        missing = [name for name in LOGINS if name not in passwords]
        if missing:
            passwords |= {name: secrets.token_urlsafe(24) for name in missing}
            self._write_passwords(passwords)
        return passwords

    def _write_passwords(self, passwords: Mapping[str, str]) -> None:
        new = self.path / "pgpass.new"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"*:*:*:{name}:{password}\n" for name, password in passwords.items())
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.passfile)

    def open_log(self) -> BinaryIO:
        """Open the log for more; a long one is set aside first."""
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT:
            self.log.replace(self.path / "log.old")
        file = os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        file.seek(0, os.SEEK_END)
        return file

    def with_log(self, message: str, start: int) -> str:
        """Give the message together with the last lines that were logged after the position ``start``."""
        lines = self.log.read_bytes()[start:].decode(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return "\n  ".join([f"{message}. Last lines of {self.log}:", *(lines or ["(nothing)"])])

    def _wait_for(self, lock: int) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = int((_lines(lock) or ["0"])[0])
                if (holder and is_alive(holder)) or time.monotonic() > deadline:
                    raise ConfigError(
                        f"{self.path} is in use by process {holder}; stop that process or choose another directory"
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _write_lock(self, *lines: str) -> None:
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, "".join(f"{line}\n" for line in lines).encode(), 0)


def _lines(lock: int) -> list[str]:
    return os.pread(lock, 4096, 0).decode(errors="replace").splitlines()
