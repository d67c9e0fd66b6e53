"""A systemd that has really booted, as process 1 of namespaces of its own, in a root that is thrown away.

Its root is an overlay over this machine's: what is written or deleted there is gone with the block and never was here.
Nothing runs in it but the units that it is given (the system's own are hidden, so nobody cleans, mounts or sets
anything); kernel settings are read-only; the network is this machine's. What is given to `booted` is bound into it.

Trusted: the units of the test run on this machine's kernel, in the sandbox that they ask for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.programs import absent, need, need_root

_BOOT = """set -e
mount --make-rprivate /
cd {home}
mkdir cgroup top
mount -t cgroup2 cgroup2 cgroup
mkdir cgroup/{name}
echo $$ > cgroup/{name}/cgroup.procs
mount -t tmpfs tmpfs top
mkdir top/upper top/work top/root
mount -t overlay overlay -o lowerdir=/,upperdir=top/upper,workdir=top/work top/root
cd top/root
for each in run tmp dev usr/lib/systemd/system etc/systemd; do mount -t tmpfs tmpfs $each; done
mkdir etc/systemd/system run/lock dev/shm dev/pts dev/mqueue
cp {home}/units/* etc/systemd/system
for each in null zero full random urandom tty ptmx; do touch dev/$each; mount --bind /dev/$each dev/$each; done
{binds}
exec {unshare} --cgroup --pid --fork --uts --ipc --kill-child sh -c '
  set -e
  mount -t proc proc proc
  mount --bind proc/sys proc/sys
  mount -o remount,ro,bind proc/sys
  mount -t sysfs -o ro sysfs sys
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  mkdir run/old
  pivot_root . run/old
  umount -l run/old
  cd /
  mount --make-rshared /
  export container=lakthan-test
  exec /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=no'
"""
# What units of services refer to; here they are there and mean nothing.
_TARGETS = ("test", "sysinit", "basic", "shutdown", "network-online", "time-sync", "multi-user")


class Systemd:
    """A booted one. `pid` is its process 1, as this machine numbers it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command where it is; what it said."""
        enter = [str(need("nsenter")), "--target", str(self.pid), "--mount", "--pid"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False, timeout=100)
        if check and done.returncode:
            status = self.run("systemctl", "status", "--no-pager", command[-1], check=False)
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}{status}")
        return done.stdout + done.stderr

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()


@contextmanager
def booted(units: Mapping[str, str], seen: Mapping[Path, str], kept: Sequence[Path] = ()) -> Iterator[Systemd]:
    """Boot with these unit files, by their names. `seen`: folders of this machine and where they are seen there,
    read-only; `kept`: folders that are the same in both, and can be written to.
    """
    need_root()
    need("systemctl")
    with tempfile.TemporaryDirectory(prefix="lakthan-systemd-") as folder:
        home = Path(folder)
        (home / "units").mkdir()
        targets = {f"{name}.target": f"[Unit]\nDescription={name}\n" for name in _TARGETS}
        for name, text in {**targets, **units}.items():
            (home / "units" / name).write_text(text)
        binds = [
            f"mkdir -p .{at}\nmount --bind {path} .{at}\nmount -o remount,ro,bind .{at}" for path, at in seen.items()
        ]
        binds += [f"mkdir -p .{path}\nmount --bind {path} .{path}" for path in kept]
        script = _BOOT.format(home=home, name=home.name, unshare=need("unshare"), binds="\n".join(binds))
        with (home / "console").open("wb") as console:
            process = subprocess.Popen(
                [need("unshare"), "--mount", "sh", "-c", script], stdout=console, stderr=console, start_new_session=True
            )
        try:
            systemd = Systemd(_process_one(process, home / "console"))
            while "active" not in systemd.run("systemctl", "is-active", "test.target", check=False).split():
                time.sleep(0.05)
            try:
                yield systemd
            except AssertionError as error:
                error.add_note((home / "console").read_text())
                raise
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _remove_cgroups(home.name)


def _process_one(process: subprocess.Popen[bytes], console: Path) -> int:
    """Wait until systemd listens to systemctl; its process number."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        # The outer unshare became sh, and that the inner one, whose only child is process 1.
        for child in _children(process.pid):
            listens = Path(f"/proc/{child}/root/run/systemd/private").exists()
            if listens and Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return child
        time.sleep(0.05)
    said = console.read_text()
    if process.poll() is not None:
        absent("systemd", f"systemd cannot be booted here: {said}")
    raise AssertionError(f"systemd has not booted: {said}")


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _remove_cgroups(name: str) -> None:
    """The control groups that are left, the deepest first; what ran in them was killed."""
    with tempfile.TemporaryDirectory(prefix="lakthan-cgroup-") as mount:
        script = (
            f"mount -t cgroup2 cgroup2 {mount} && cd {mount} && for _ in 1 2 3 4 5 6 7 8 9 10; do "
            f"[ -d {name} ] || exit 0; find {name} -depth -type d -exec rmdir {{}} \\; 2>/dev/null || sleep 0.2; done"
        )
        subprocess.run([need("unshare"), "--mount", "sh", "-c", script], check=False)
