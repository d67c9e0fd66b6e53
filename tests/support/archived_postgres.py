"""A PostgreSQL with a backup and an archive of its log, as docs/disaster-recovery.md has it, and its end and return.

Two copies of the log are kept: the server archives each full segment (`archive_command`), and pg_receivewal has every
commit before the client hears of it (`synchronous_standby_names`). Without the second one the last unfinished segment
is lost with the server. All of it blocks; whoever has clients at work calls it from a thread.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import asyncpg

from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.embedded_binaries import choose_account, clean_environment, find_binaries, make_scratch
from lakthan.store.embedded_process import server_processes

# What docs/disaster-recovery.md recommends; a test reads it there. `archive_command` depends on where the archive is.
SETTINGS = {
    "wal_level": "replica",
    "archive_mode": "on",
    "archive_timeout": "60s",
    "synchronous_standby_names": "pg_receivewal",
    "synchronous_commit": "on",
}
_PATIENCE_SECONDS = 60.0


class ArchivedPostgres:
    """`folder` has the cluster; the archive and the backup lie elsewhere, where a disaster does not reach them.

    `url(login)` as of `EmbeddedPostgres`; `streams`: how many lives of the server were streamed.
    """

    def __init__(self, folder: Path) -> None:
        self.server = EmbeddedPostgres(folder)
        self._data = folder / "postgres" / "data"
        self._programs = find_binaries(None).folder
        self._account = choose_account(None)
        self._elsewhere = make_scratch()
        self._archive = self._elsewhere / "archive"
        self._backup = self._elsewhere / "backup"
        self._receiver_log = self._elsewhere / "pg_receivewal.log"
        self._receiver: subprocess.Popen[bytes] | None = None
        self._lives = 0

    @property
    def archived_segments(self) -> int:
        """How many segments the archive has."""
        return sum(1 for each in self._archive.iterdir() if len(each.name) == 24)

    def make(self) -> None:
        """Make the cluster, start it and stop it: afterwards there is a database, without archiving so far."""
        self._archive.mkdir()
        os.chown(self._archive, self._account.uid, self._account.gid)
        self.server.start()

    def begin_archiving(self) -> None:
        """From now on nothing is confirmed that is not in two places."""
        self.server.stop()
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write("local replication owner scram-sha-256\n")
        archive = f'test ! -f "{self._archive}/%f" && cp "%p" "{self._archive}/.%f" && mv "{self._archive}/.%f"'
        settings = {**SETTINGS, "archive_command": f'{archive} "{self._archive}/%f"'}
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.start()

    def start(self) -> None:
        """Start the server, and whoever receives its log."""
        self.server.start()
        self._lives += 1
        stream = self._elsewhere / f"stream-{self._lives}"
        stream.mkdir()
        slot = f"--slot=life_{self._lives}"
        receive: list[str | Path] = [
            self._programs / "pg_receivewal",
            *self._connection(),
            f"--directory={stream}",
            slot,
        ]
        self._run(*receive, "--create-slot", "--if-not-exists")
        with self._receiver_log.open("wb") as log:
            self._receiver = subprocess.Popen(
                [*map(str, receive), "--synchronous"], stdout=log, stderr=log, env=self._environment()
            )

    def demand_life(self) -> None:
        """Raises `AssertionError` when pg_receivewal has ended by itself: no commit is confirmed any more."""
        if self._receiver is not None and self._receiver.poll() is not None:
            said = self._receiver_log.read_text(errors="replace")
            raise AssertionError(f"pg_receivewal ended by itself with {self._receiver.returncode}: {said}")

    async def until_archiving(self) -> None:
        """Return when commits are confirmed again: pg_receivewal counts as the synchronous standby."""
        connection = await asyncpg.connect(self.server.url())
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')"
            ):
                self.demand_life()
                assert time.monotonic() < deadline, "pg_receivewal does not receive"
        finally:
            await connection.close()

    @contextmanager
    def nobody_receives(self) -> Iterator[None]:
        """Until the end of the block pg_receivewal stands still: nothing that is committed is in two places."""
        assert self._receiver is not None
        self._receiver.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._receiver.send_signal(signal.SIGCONT)

    def back_up(self) -> None:
        """An online base backup."""
        backup: list[str | Path] = [self._programs / "pg_basebackup", *self._connection(), f"--pgdata={self._backup}"]
        self._run(*backup, "--checkpoint=fast", "--wal-method=none", "--no-sync")

    def disaster(self) -> None:
        """Every process of the server is killed at the same moment, and its data folder is gone."""
        victims = server_processes(self._data)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                os.kill(victim, number)
        self.server.stop()  # there is nothing left to stop; it collects the dead
        self._end_receiver()
        shutil.rmtree(self._data)

    def restore(self, until: datetime | None = None) -> float:
        """The backup, and the log up to its end or to an instant; then the server serves. Gives the seconds it took."""
        began = time.monotonic()
        shutil.copytree(self._backup, self._data, symlinks=True)
        sources = [self._archive, *sorted(self._elsewhere.glob("stream-*"), reverse=True)]
        copies = [f'cp "{source}/%f{end}" "%p" 2>/dev/null' for source in sources for end in ("", ".partial")]
        lines = [f"restore_command = '{' || '.join(copies)}'\n", "recovery_target_action = 'promote'\n"]
        lines.append("hot_standby = 'off'\n")  # so that nobody gets in before it has come to its end
        if until is not None:
            lines.append(f"recovery_target_time = '{until.isoformat()}'\n")
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(lines)
        (self._data / "recovery.signal").touch()
        for path in (self._data, *self._data.rglob("*"), *self._elsewhere.glob("stream-*/*")):
            os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)
        for stream in self._elsewhere.glob("stream-*"):
            stream.chmod(0o755)
        self.start()
        # What is said to recovery holds for one recovery.
        auto = self._data / "postgresql.auto.conf"
        kept = [line for line in auto.read_text().splitlines(keepends=True) if not line.startswith(_OF_RECOVERY)]
        auto.write_text("".join(kept))
        return time.monotonic() - began

    def close(self) -> None:
        """Leave nothing behind."""
        self._end_receiver()
        self.server.stop()
        shutil.rmtree(self._elsewhere, ignore_errors=True)

    def _end_receiver(self) -> None:
        if self._receiver is not None:
            self._receiver.terminate()
            self._receiver.wait()
            self._receiver = None

    def _connection(self) -> list[str]:
        return [f"--host={self.server.socket_directory}", "--port=5432", "--username=owner", "--no-password"]

    def _environment(self) -> dict[str, str]:
        return {**clean_environment(), "PGPASSFILE": str(self.server.passfile)}

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            [*map(str, command)], check=False, capture_output=True, text=True, env=self._environment()
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"


_OF_RECOVERY = ("restore_command", "recovery_target", "hot_standby")
