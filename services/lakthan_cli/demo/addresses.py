"""Where the demo listens: chosen before anything starts, written down because the certificates carry it.

Promises: a port that was asked for is used or refused by name, never swapped. A port that nobody asked for is the one
of the last start, else the usual one, else a free one.

Refuses to know: what is served there.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from lakthan.errors import ConfigError
from lakthan_cli.demo.certificates import Urls

USUAL_PORTS = {
    "ocsp": 6960,
    "ocsp_admin": 6961,
    "publication": 6962,
    "tsa": 3161,
    "tsa_admin": 3162,
    "registry": 8443,
    "registry_admin": 8444,
}
LOOPBACK = "127.0.0.1"
_EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - compared, not bound
# After a crash the children of the last start may take a moment to let go of their ports.
_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """The demo's host and its ports, by the keys of `USUAL_PORTS`. Admin ports are on the loopback interface."""

    host: str
    ports: Mapping[str, int] = field(default_factory=dict)

    def url(self, service: str) -> str:
        """The base URL of a service, no slash at its end."""
        host = LOOPBACK if service.endswith("_admin") else _EVERYWHERE.get(self.host, self.host)
        scheme = "https" if service == "registry" else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.ports[service]}"

    @property
    def urls(self) -> Urls:
        """What the certificates carry."""
        return Urls(ocsp=self.url("ocsp"), publication=self.url("publication"))


def choose(host: str | None, asked: Mapping[str, int | None], last: Addresses | None) -> Addresses:
    """The addresses of this start. `asked`: ports that the user named, or None; `last`: those of the folder.

    Raises `ConfigError` when a port that was asked for is taken, or the host is not one of this machine's.
    """
    host = host or (last.host if last else LOOPBACK)
    ports: dict[str, int] = {}
    with ExitStack() as held:  # all are held until all are chosen, so that none is chosen twice
        for service, usual in USUAL_PORTS.items():
            where = LOOPBACK if service.endswith("_admin") else host
            wanted = asked.get(service)
            known = last.ports.get(service) if last else None
            patience = _PATIENCE_SECONDS if last else 0.0
            listener = _bind(where, wanted or known or usual, patience)
            if listener is None and wanted:
                raise ConfigError(
                    f"port {wanted} on {where} is taken by another program: stop that one, "
                    "or leave the option out to have a free port chosen",
                )
            if listener is None:
                listener = _bind(where, 0, 0.0)
            if listener is None:
                raise ConfigError(f"no free port is left on {where}")
            ports[service] = held.enter_context(listener).getsockname()[1]
    return Addresses(host, ports)


def differences(certified: Addresses, now: Addresses) -> list[str]:
    """Plain sentences about what the certificates say and this start does otherwise."""
    return [
        f"the certificates name {certified.url(service)} for {what}, but it is at {now.url(service)} this time"
        for service, what in (("ocsp", "OCSP"), ("publication", "CRLs and CA certificates"))
        if certified.url(service) != now.url(service)
    ]


def _bind(host: str, port: int, patience_seconds: float) -> socket.socket | None:
    """A socket bound there, or None when the port is taken and stays so."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return _try_bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                reason = error.strerror or error
                raise ConfigError(f"cannot listen on {host} port {port}: {reason}; try another --host") from error
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)


def _try_bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        listener.bind(address)
        # A bind alone succeeds beside another socket that is bound with SO_REUSEADDR and does not listen yet.
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
