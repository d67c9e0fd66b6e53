"""Who listens where the services would: nobody, they themselves, or somebody else."""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from lakthan_cli.doctor.notes import Notes, Patient

_LISTENING = "0A"  # the kernel's word in /proc/net/tcp
_PRIVILEGED = 1024


@dataclass(frozen=True, slots=True)
class _Listener:
    """A process. `number`: None when it is somebody else's and cannot be seen."""

    number: int | None
    name: str
    ours: bool


async def look(patient: Patient, notes: Notes) -> None:
    """The public and the admin port of every service."""
    config = patient.config
    for name, service in (("ocsp", config.ocsp), ("tsa", config.tsa), ("registry", config.registry)):
        if service is not None:
            _look(name, "port", service.host, service.port, notes)
            _look(name, "admin port", service.admin_host, service.admin_port, notes)
    if config.publisher is not None:
        _look("publisher", "admin port", config.publisher.admin_host, config.publisher.admin_port, notes)


def _look(service: str, check: str, host: str, port: int, notes: Notes) -> None:
    where = f"{host} {port}"
    if port == 0:
        notes.ok(service, check, "any that is free")
        return
    trouble = _try(host, port)
    if trouble is None:
        notes.ok(service, check, f"{where} is free: the service does not run here")
    elif trouble == errno.EADDRINUSE:
        _in_use(service, check, where, listeners(port), notes)
    elif trouble == errno.EACCES and port < _PRIVILEGED:
        todo = "give the process CAP_NET_BIND_SERVICE, or choose a port above 1023 behind a proxy"
        notes.failure(service, check, f"{where} may only be used by root", todo)
    else:
        todo = "use an address of this machine: `ip address` lists them; 0.0.0.0 or :: is all of them"
        notes.failure(service, check, f"{where} cannot be used: {os.strerror(trouble)}", todo)


def _in_use(service: str, check: str, where: str, found: list[_Listener], notes: Notes) -> None:
    who = ", ".join(f"{each.name} (process {each.number})" for each in found if each.number is not None)
    if found and all(each.ours for each in found):
        notes.ok(service, check, f"{where}: {who}")
    elif who:
        todo = "stop that program, or choose another port"
        notes.failure(service, check, f"{where} is taken by {who}", todo)
    else:
        todo = "run this as root, or as the user of the service, to see who it is"
        notes.warning(service, check, f"{where} is in use by a process that cannot be seen from here", todo)


def _try(host: str, port: int) -> int | None:
    """The error number of trying to listen there, None when that works."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    with socket.socket(family, kind, protocol) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            return error.errno
    return None


def listeners(port: int) -> list[_Listener]:
    """The processes that listen on a port of this machine, on whichever address."""
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    found = [each for process in Path("/proc").glob("[0-9]*") if (each := _holder(process, sockets))]
    return found or ([_Listener(None, "", ours=False)] if sockets else [])


def _holder(process: Path, sockets: set[str]) -> _Listener | None:
    try:
        if not any(str(each.readlink()) in sockets for each in (process / "fd").iterdir()):
            return None
        # Arguments may hold secrets of other programs: only ours are looked at, and none is shown.
        arguments = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        name = (process / "comm").read_text().strip()
    except OSError:
        return None  # it ended while we looked, or is somebody else's
    module = re.search(r"\b(lakthan_\w+(?:\.\w+)*)|\blakthan (?:serve|demo)\b", arguments)
    return _Listener(int(process.name), module[0] if module else name, ours=module is not None)
