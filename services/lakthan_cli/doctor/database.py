"""The database of each service: is it there, new enough, safe with what it is given, large enough, and does the login
have the rights that the service needs and no others?
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lakthan.errors import LakthanError
from lakthan.store.diagnosis import Acting, Server, look_as, look_at_server
from lakthan.store.embedded_binaries import OLDEST_MAJOR
from lakthan_cli.doctor.notes import Notes, Patient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lakthan.config import DatabaseConfig

_SKEW = timedelta(seconds=1)
_NEARLY_FULL = 0.8
# Besides the pool: who hears of changes, who leases epochs, who waits until responders have heard.
_OVERSEERS_OF_REGISTRY = 3 * 2


@dataclass(frozen=True, slots=True)
class _Client:
    """A service as its database sees it. `connections`: the most that it opens, all its workers together."""

    name: str
    database: DatabaseConfig
    roles: tuple[str, ...]
    connections: int


async def look(patient: Patient, notes: Notes) -> None:
    """Every service's own way to its database."""
    clients = list(_clients(patient))
    servers: dict[str, list[tuple[_Client, Server]]] = {}
    for client in clients:
        try:
            password = client.database.password()
            server = await look_at_server(client.database.url, password=password)
        except LakthanError as error:
            todo = "look whether it runs, and at url, password_file and passfile of [database]"
            notes.failure(client.name, "reached", str(error), todo)
            continue
        notes.ok(client.name, "reached", f"PostgreSQL {server.major}, as {server.login}")
        _login(client, server, notes)
        for role in client.roles:
            await _role(client, role, password, notes)
        _schema(client, notes)
        servers.setdefault(client.database.url.partition("?")[0].rpartition("@")[2], []).append((client, server))
    for found in servers.values():
        _server(found[0][1], notes)
        _room(found, notes)


def _clients(patient: Patient) -> list[_Client]:
    config, workers = patient.config, patient.workers
    clients = []
    if config.ocsp is not None:
        own = config.ocsp.database.connections + 1
        clients.append(_Client("ocsp", config.ocsp.database, ("lakthan_responder",), workers * own))
    if config.tsa is not None:
        own = config.tsa.database.connections
        clients.append(_Client("tsa", config.tsa.database, ("lakthan_tsa",), workers * own))
    if config.registry is not None:
        roles = ("lakthan_publisher", "lakthan_registrar", "lakthan_auditor")
        own = config.registry.database.connections + _OVERSEERS_OF_REGISTRY + 1
        clients.append(_Client("registry", config.registry.database, roles, own))
    if config.publisher is not None:
        own = 2 + 2 * len(config.publisher.responders) + 1
        clients.append(_Client("publisher", config.publisher.database, ("lakthan_presigner",), own))
    return clients


def _login(client: _Client, server: Server, notes: Notes) -> None:
    more = sorted(server.roles - set(client.roles))
    if server.superuser:
        todo = f"make a login of its own: CREATE ROLE svc_{client.name} LOGIN; GRANT {', '.join(client.roles)} TO it"
        said = f"{server.login} is a superuser: a flaw in the service could do anything"
        notes.warning(client.name, "login", said, todo)
    elif more:
        todo = f"REVOKE {', '.join(more)} FROM {server.login}"
        notes.warning(client.name, "login", f"{server.login} may also act as {', '.join(more)}", todo)
    else:
        notes.ok(client.name, "login", f"{server.login} may act as {', '.join(sorted(server.roles)) or 'nobody'}")


async def _role(client: _Client, role: str, password: str | None, notes: Notes) -> None:
    try:
        acting = await look_as(client.database.url, role, password=password)
    except LakthanError as error:
        todo = f"let the login act as it: GRANT {role} TO the login; or `lakthan db migrate` where the role is missing"
        notes.failure(client.name, role, str(error), todo)
        return
    _session(client, role, acting, notes)
    if acting.schema_problem and not _said(client, "schema", notes):
        notes.failure(client.name, "schema", acting.schema_problem, "run `lakthan db migrate` as the owner")
    if acting.missing:
        todo = "run `lakthan db migrate` of this release; what somebody took away has to be granted again"
        notes.failure(client.name, role, f"{len(acting.missing)} rights are missing", todo, _rights(acting.missing))
    if acting.extra:
        todo = f"take them away again: REVOKE … FROM {role}, and look who gave them"
        notes.failure(client.name, role, f"{len(acting.extra)} rights too many", todo, _rights(acting.extra))
    if not acting.missing and not acting.extra:
        notes.ok(client.name, role, "has its rights, and no others")


def _said(client: _Client, check: str, notes: Notes) -> bool:
    return any((each.subject, each.check) == (client.name, check) for each in notes.findings)


def _schema(client: _Client, notes: Notes) -> None:
    """Asked in every role, and said once."""
    if not _said(client, "schema", notes):
        notes.ok(client.name, "schema", "as new as this release needs")


def _rights(rights: frozenset[tuple[str, str]]) -> list[str]:
    return [f"{verb} on {table}" for verb, table in sorted(rights, key=lambda each: (each[1], each[0]))]


def _session(client: _Client, role: str, acting: Acting, notes: Notes) -> None:
    """What the service asks for when it connects, and a pooler in between may throw away."""
    if acting.user != role or acting.synchronous_commit not in ("on", "remote_apply"):
        todo = "connect to PostgreSQL itself: a pooler in between drops role and synchronous_commit of the connection"
        said = f"it acts as {acting.user}, with synchronous_commit {acting.synchronous_commit}"
        notes.failure(client.name, "session", said, todo)


def _server(server: Server, notes: Notes) -> None:
    """What would lose what was committed, and what people will stumble over."""
    settings = server.settings
    if server.major < OLDEST_MAJOR:
        said = f"PostgreSQL {server.major}: {OLDEST_MAJOR} is the oldest that works"
        notes.failure("server", "version", said, "upgrade it: pg_upgrade, or pg_dump and restore")
    else:
        notes.ok("server", "version", f"PostgreSQL {server.major}")
    _durability(settings, notes)
    if settings.get("TimeZone", "").upper() not in ("UTC", "ETC/UTC", "GMT"):
        said = f"TimeZone is {settings.get('TimeZone')}: people read times of the services wrongly there"
        notes.warning("server", "timezone", said, "set timezone = 'UTC'; the services set it for themselves")
    else:
        notes.ok("server", "timezone", "UTC")
    ahead = server.clock_ahead.total_seconds()
    if abs(server.clock_ahead) > _SKEW + server.clock_gap:
        todo = "synchronise both clocks: revocation times and waits are computed from both"
        notes.warning("server", "clock", f"{ahead:+.1f} s ahead of this machine", todo)
    else:
        notes.ok("server", "clock", f"{ahead:+.3f} s ahead of this machine")


def _durability(settings: Mapping[str, str], notes: Notes) -> None:
    """Whether what was committed is still there after a crash."""
    for name in ("fsync", "full_page_writes"):
        if settings.get(name) == "off":
            said = f"{name} is off: after a crash tokens and revocations are lost, or the whole database"
            notes.failure("server", "durability", said, f"set {name} = on, and restart PostgreSQL")
    for name in ("zero_damaged_pages", "ignore_checksum_failure"):
        if settings.get(name) == "on":
            notes.failure("server", "durability", f"{name} is on: damage is passed over", f"set {name} = off")
    if settings.get("synchronous_commit") == "off":
        said = "synchronous_commit is off for everybody who does not ask: what others write here can be lost"
        notes.warning("server", "durability", said, "set synchronous_commit = on; the services ask for it themselves")
    if settings.get("data_checksums") == "off":
        notes.warning(
            "server", "durability", "no checksums: silent damage stays silent", "stop it, then pg_checksums -e"
        )
    if not any(each.check == "durability" for each in notes.findings):
        standbys = settings.get("synchronous_standby_names") or "none: a failover may lose the last commits"
        notes.ok("server", "durability", f"fsync, full_page_writes and checksums on; synchronous standbys: {standbys}")


def _room(found: list[tuple[_Client, Server]], notes: Notes) -> None:
    """max_connections against what the services may open, all workers of this machine together."""
    server = found[0][1]
    settings = server.settings
    reserved = int(settings.get("superuser_reserved_connections", 0)) + int(settings.get("reserved_connections", 0))
    room = int(settings["max_connections"]) - reserved - server.others
    wanted = sum(client.connections for client, _ in found)
    each = ", ".join(f"{client.name} {client.connections}" for client, _ in found)
    said = f"up to {wanted} ({each}) of {room} that are free for them"
    todo = "raise max_connections, or lower connections of [database], or run fewer workers"
    if wanted > room:
        notes.failure("server", "connections", said, todo)
    elif wanted > room * _NEARLY_FULL:
        notes.warning("server", "connections", said, f"{todo}; other machines and a rolling restart need room as well")
    else:
        notes.ok("server", "connections", said)
    for client, one in found:
        if one.connection_limit is not None and client.connections > one.connection_limit:
            said = f"{client.name} may open {client.connections}, and {one.login} is allowed {one.connection_limit}"
            notes.failure(
                client.name, "connections", said, f"ALTER ROLE {one.login} CONNECTION LIMIT -1, or lower them"
            )
