"""What a process is that a supervisor started (`lakthan.web.workers`): one of several workers of one service.

The supervisor says so in the environment. A worker accepts on sockets that it inherits and that outlive it: what is
queued there when it goes is its successor's. It has its admin port on a UNIX socket where only the supervisor looks,
and stops when the supervisor has gone, however that went: its standard input, which the supervisor holds open, then
ends.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

VARIABLE = "LAKTHAN_WORKER"


@dataclass(frozen=True, slots=True)
class Worker:
    """`number`: from 0. `listeners`: the file descriptors of its bound sockets. `admin_socket`: the path of the UNIX
    socket for its admin port.
    """

    number: int
    listeners: tuple[int, ...]
    admin_socket: str

    @property
    def variable(self) -> str:
        """How the supervisor says it."""
        return f"{self.number}:{','.join(map(str, self.listeners))}:{self.admin_socket}"

    def sockets(self) -> list[socket.socket]:
        """The sockets that it inherited; bound, and listening or not."""
        inherited = [socket.socket(fileno=descriptor) for descriptor in self.listeners]
        for each in inherited:
            each.settimeout(0)
        return inherited


def this_worker() -> Worker | None:
    """What this process is; None when it stands alone."""
    number, _, rest = os.environ.get(VARIABLE, "").partition(":")
    listeners, _, admin_socket = rest.partition(":")
    return Worker(int(number), tuple(map(int, listeners.split(","))), admin_socket) if admin_socket else None
