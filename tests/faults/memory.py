"""The kernel's own answer to a lack of memory: it kills somebody (a memory cgroup, of either version)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from faults.service import PATIENCE_SECONDS

_ROOT = Path("/sys/fs/cgroup")
_OCTETS = 64 << 20
# The kernel is told to take the services first, as it does by itself where they are the largest.
_FIRST = "1000"
_GLUTTON = """
taken = []
while True:
    taken.append(b"x" * 2**20)
"""


def let_the_kernel_kill(processes: Sequence[int]) -> None:
    """Put them into a cgroup with a neighbour that takes more than there is; return when the kernel has killed them
    all. Raises `RuntimeError` where there are no memory cgroups.
    """
    with _group() as group:
        for process in processes:
            Path(f"/proc/{process}/oom_score_adj").write_text(_FIRST)
            (group / "cgroup.procs").write_text(str(process))
        entering = 'echo $$ > "$1" && exec "$2" -c "$3"'
        command = ["sh", "-c", entering, "sh", str(group / "cgroup.procs"), sys.executable, _GLUTTON]
        glutton = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while _killed(group) < len(processes):
                ended = glutton.poll() is not None
                if (ended and _killed(group) < len(processes)) or time.monotonic() > deadline:
                    raise RuntimeError("the kernel killed nobody for want of memory")
                time.sleep(0.02)
        finally:
            glutton.kill()
            glutton.wait()


def _killed(group: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        if (group / name).exists():
            words = (line.split() for line in (group / name).read_text().splitlines())
            return int(dict(words)["oom_kill"])
    raise RuntimeError(f"{group} does not say whom the kernel has killed")


@contextmanager
def _group() -> Iterator[Path]:
    """A cgroup with a limit."""
    old = (_ROOT / "memory").is_dir()
    top = _ROOT / "memory" if old else _ROOT
    limit = "memory.limit_in_bytes" if old else "memory.max"
    if not old:
        (_ROOT / "cgroup.subtree_control").write_text("+memory")
    group = top / f"lakthan-faults-{os.getpid()}"
    group.mkdir()
    try:
        if not (group / limit).exists():
            raise RuntimeError("this kernel has no memory cgroups")
        (group / limit).write_text(str(_OCTETS))
        yield group
    finally:
        _remove(group, top)


def _remove(group: Path, top: Path) -> None:
    """Whoever is left, as nobody should be, goes back to where there is room for him."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (top / "cgroup.procs").write_text(process)
        try:
            group.rmdir()
        except OSError:  # somebody who was killed is still on his way
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
