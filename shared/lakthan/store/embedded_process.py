"""The life of the embedded PostgreSQL's processes: born with a guardian, gone with their parent.

This module promises that a command of PostgreSQL ends when the process that started it ends, however that one ends,
and that processes which were left over all the same can be found and stopped.

It refuses to know what the commands are for: ``embedded.py`` does.

The rules it lives by:

- A pipe is the lifeline. Only the starting process holds its writing end, so the kernel itself reports the death of
  that process, also by SIGKILL. The parent-death signal of Linux would not do: it follows the *thread* that started the
  child, and threads of a pool come and go.
- The guardian is a few lines of shell: it is there at once, costs no memory, and asks again and again, for a server
  that has just been started still ignores SIGINT.
- Leftover processes are known by what they are and the folder they work in, never by a number in a file alone: numbers
  are used again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.store.embedded_binaries import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_POLL_SECONDS = 0.005

# Arguments: the command's standard input, a folder to remove afterwards (or nothing), the command.
# A signal to the whole service (Ctrl-C, systemctl stop) is the parent's to handle, so the guardian ignores it.
_GUARDIAN = """
trap '' HUP INT TERM
stdin=$1 scratch=$2
shift 2
exec 3<&0
"$@" 3<&- <"$stdin" >&2 &
child=$!
echo "$child"
exec >&-
(read -r _ <&3; while kill -INT "$child"; do sleep 0.2; done) 2>/dev/null &
watcher=$!
exec 3<&-
wait "$child"
status=$?
kill -KILL "$watcher"
[ -z "$scratch" ] || rm -rf "$scratch"
exit "$status"
"""


class Guarded:
    """A running command that receives SIGINT when this process calls ``end`` or is no more.

    ``pid`` is the command's own number. ``log`` receives what it prints.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: IO[bytes],
        stdin: Path = Path("/dev/null"),
        scratch: Path | None = None,
        descriptors: Iterable[int] = (),
    ) -> None:
        """Start the command; it inherits ``descriptors``, and the guardian removes ``scratch`` when it has ended."""
        watched, self._lifeline = os.pipe()
        try:
            # A session of its own: Ctrl-C in the terminal must reach this process only, which then ends in good order.
            self._guardian = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDIAN, "guardian", str(stdin), str(scratch or ""), *command],
                stdin=watched,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=tuple(descriptors),
                env=clean_environment(),
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(watched)
        assert self._guardian.stdout is not None  # noqa: S101 (stdout=PIPE gives one)
        with self._guardian.stdout as stdout:
            self.pid = int(stdout.readline())

    def status(self) -> int | None:
        """Give the exit status of the command, or None while it runs."""
        return self._guardian.poll()

    def wait(self) -> int:
        """Wait for the command's own end and give its exit status."""
        status = self._guardian.wait()
        self.let_go()
        return status

    def end(self, limit: timedelta) -> None:
        """Ask the command to end by SIGINT and wait; SIGQUIT when the limit is over, SIGKILL when that fails too."""
        self.let_go()
        for then in (signal.SIGQUIT, signal.SIGKILL):
            try:
                self._guardian.wait(limit.total_seconds())
            except subprocess.TimeoutExpired:
                _kill(self.pid, then)
                limit = timedelta(seconds=5)
            else:
                return
        self._guardian.wait()

    def let_go(self) -> None:
        """Close this process's end of the lifeline; closed once, it stays closed."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def inheritable_number(descriptor: int) -> int:
    """Move a descriptor above 9: a command may inherit it then, while the guardian's shell uses the low numbers."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Whether a process of this number exists, be it ours or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def server_processes(data: Path) -> list[int]:
    """Give the process numbers of every PostgreSQL process that works in this data folder."""
    there = data.stat()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_bytes() == b"postgres\n" and _works_in(entry, there):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return found


def _works_in(process: Path, folder: os.stat_result) -> bool:
    try:
        return os.path.samestat((process / "cwd").stat(), folder)
    except PermissionError:
        # Another user's. Root in a container without CAP_SYS_PTRACE cannot look at the folder of its own server that
        # runs as nobody; the title of each of its processes has the cluster's name, and everybody can read that.
        return cluster_name(folder).encode() in (process / "cmdline").read_bytes()


def cluster_name(folder: os.stat_result) -> str:
    """Give the name by which the processes of the cluster in this folder are known: no other folder has it."""
    return f"lakthan-{folder.st_dev:x}-{folder.st_ino:x}."


def stop_leftovers(data: Path) -> None:
    """Stop every server process in this data folder in good order, by force where that fails, and wait for it.

    The caller holds the lock of the folder, so these processes have lost their parent. Raises ConfigError when one
    outlives even SIGKILL.
    """
    postmaster = postmaster_state(data)[0]
    for number, limit_seconds in ((signal.SIGINT, 15), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
        pids = server_processes(data)
        if number is signal.SIGINT:
            # To any other process than the postmaster SIGINT means "cancel your query"; without a postmaster nothing is
            # left to be put in order.
            pids = [pid for pid in pids if pid == postmaster]
        for pid in pids:
            _kill(pid, number)
        if pids and _all_gone(data, limit_seconds):
            return
    pids = server_processes(data)
    if pids:
        raise ConfigError(
            f"processes {pids} of an earlier PostgreSQL still use {data} and cannot be stopped; restart the machine"
        )


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # gone by itself, which is what was wanted


def _all_gone(data: Path, limit_seconds: float) -> bool:
    deadline = time.monotonic() + limit_seconds
    while server_processes(data):
        if time.monotonic() > deadline:
            return False
        time.sleep(4 * _POLL_SECONDS)
    return True


def postmaster_state(data: Path) -> tuple[int, str]:
    """Read ``postmaster.pid``: the postmaster's number and its state, ``ready`` when it answers; (0, "") if absent."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return 0, ""
    pid = int(lines[0]) if lines and lines[0].isdigit() else 0
    state_line = 7  # the eighth line, last to be written
    return pid, lines[state_line].strip() if len(lines) > state_line else ""


def wait_until_ready(server: Guarded, data: Path, limit: timedelta) -> bool:
    """Wait until the server answers; False when it ended instead or the limit passed."""
    deadline = time.monotonic() + limit.total_seconds()
    while time.monotonic() < deadline:
        if postmaster_state(data) == (server.pid, "ready"):
            return True
        if server.status() is not None:
            return False
        time.sleep(_POLL_SECONDS)
    return False
