"""What a process is that a supervisor started (`lakthan.web.workers`): one of several workers of one service.

The supervisor says so in the environment. A worker shares its public port with the others (SO_REUSEPORT: the system
spreads the connections), has its admin port on a UNIX socket where only the supervisor looks, and stops when the
supervisor has gone, however that went: its standard input, which the supervisor holds open, then ends.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

VARIABLE = "LAKTHAN_WORKER"


@dataclass(frozen=True, slots=True)
class Worker:
    """`number`: from 0. `admin_socket`: the path of the UNIX socket for its admin port."""

    number: int
    admin_socket: str

    @property
    def variable(self) -> str:
        """How the supervisor says it."""
        return f"{self.number}:{self.admin_socket}"


def this_worker() -> Worker | None:
    """What this process is; None when it stands alone."""
    number, _, admin_socket = os.environ.get(VARIABLE, "").partition(":")
    return Worker(int(number), admin_socket) if admin_socket else None
