"""What this machine gives a process: descriptors for connections, and cores for workers."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from lakthan_cli.doctor.notes import Notes, Patient

_FEW_DESCRIPTORS = 4096
_TOO_FEW_DESCRIPTORS = 512
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_ALL_IN_USE = 2  # beyond so many cores it is worth a word that some are idle


async def look(patient: Patient, notes: Notes) -> None:
    """Limits first, then workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{soft} (hard limit {hard}): each connection of a client takes one, and stays for 75 s"
    todo = "raise it: LimitNOFILE=65536 of the systemd unit, or ulimit -n"
    if soft < _TOO_FEW_DESCRIPTORS:
        notes.failure("process", "descriptors", said, todo)
    elif soft < _FEW_DESCRIPTORS:
        notes.warning("process", "descriptors", said, todo)
    else:
        notes.ok("process", "descriptors", said)
    cores = _cores()
    busy = [name for name in ("ocsp", "tsa") if getattr(patient.config, name) is not None]
    said = f"{patient.workers} of {' and '.join(busy) or 'no service'}, {cores:g} cores"
    if patient.workers > cores:
        todo = (
            "run at most one worker for each core: more of them only share the processor, and each has its own memory"
        )
        notes.warning("process", "workers", said, todo)
    elif busy and cores > _ALL_IN_USE and patient.workers == 1:
        todo = "use `--workers` with lakthan serve where one process is not enough, or more pods"
        notes.ok("process", "workers", f"{said}: one process uses one core; {todo}")
    else:
        notes.ok("process", "workers", said)


def _cores() -> float:
    """Those that this process may use, and no more than its control group is given (cgroups v2)."""
    cores = float(len(os.sched_getaffinity(0)))
    if _CPU_MAX.exists():
        quota, _, period = _CPU_MAX.read_text().strip().partition(" ")
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores
