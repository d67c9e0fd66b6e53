"""The one configuration file: TOML, read into typed structs, unknown keys refused with their line.

Secrets are paths, never values. Relative paths start at the file's folder. A scalar can be overridden from the
environment for containers: `LAKTHAN_OCSP__PORT=8080` sets `port` under `[ocsp]`, and `DATABASE_URL` stands in where a
service's database is not given.

Durations are ISO 8601 (`PT1H`, `P7D`).
"""

from __future__ import annotations

import os
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_ENVIRONMENT_PREFIX = "LAKTHAN_"
_WORDS: dict[str, object] = {"true": True, "false": False}


class KeyURI:
    """Where a private key lives (`lakthan.keys`); relative paths in it start at `folder`."""

    __slots__ = ("folder", "uri")

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.folder = folder

    def __repr__(self) -> str:
        return f"KeyURI({self.uri!r}, {self.folder!r})"


class DatabaseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the store is. `url` carries no password: it names a `passfile`, or `password_file` holds it."""

    url: str = ""
    password_file: Path | None = None
    connections: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4

    def password(self) -> str | None:
        """The password of `password_file` (its first line). Raises `ConfigError` when it cannot be read."""
        if self.password_file is None:
            return None
        try:
            return self.password_file.read_text().split("\n", 1)[0]
        except OSError as error:
            raise ConfigError(f"the password file {self.password_file} cannot be read: {error.strerror}") from error


class ResponderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who answers for one authority of the store: a delegated responder certificate (RFC 6960 §4.2.2.2) and its key.

    An authority may have several, with keys of different algorithms or issued under its current and previous keys; the
    first is the default.

    `profile` gives whatever is not set here. Two knobs, on purpose apart: an answer says it is valid for `validity`
    (nextUpdate − thisUpdate), and a new one is signed after `refresh`, so that clients which look at the age of an
    answer are content as well as those which store it. `max_age` bounds what HTTP caches may keep: a revocation reaches
    everybody behind one within that time.

    `non_issued`: what is said of serial numbers that were never announced. `signed_requests`: signatures of requests
    are ignored, verified where there is one, or required; `requestors` is a PEM file of the CAs that clients may be
    certified by. `dual_hash`: answers carry a SHA-1 and a SHA-256 CertID (RFC 9919 §3.2.1). `cert_hash`: answers carry
    the hash of the certificate where the store has it. `final`: the CA has ended, answers hold for ever
    (EN 319 411-2 CSS-6.3.10-11).

    `keys` names a key list (`lakthan.keys.key_list`) instead of `certificate` and `key`: keys then come and go without
    a restart.

    With `answers = "published"` what an offline CA or a publisher signed is given out as it is. There need be neither
    certificate nor key, and then of all the settings only `max_age` means anything; with a key, what cannot have been
    signed before it was asked for is signed live: requests with a nonce, and about several certificates.
    """

    authority: str
    certificate: Path | None = None
    key: KeyURI | None = None
    keys: Path | None = None
    answers: Literal["signed", "published"] = "signed"
    profile: str = "pdf-ltv"
    validity: timedelta | None = None
    refresh: timedelta | None = None
    max_age: timedelta | None = None
    non_issued: Literal["unknown", "revoked", "unauthorized"] | None = None
    signed_requests: Literal["ignore", "verify", "require"] = "ignore"
    requestors: Path | None = None
    dual_hash: bool = False
    cert_hash: bool = False
    final: bool = False


class OCSPConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The OCSP responder. `port` 0 takes a free one. `cached_answers` and `cache_megabytes` bound the response cache of
    each worker, whichever is reached first.

    `keyless`: it stands at the edge, beside a copy of the database (a standby or a subscriber), has published answers
    only and opens no key. It answers while what it knows is younger than `edge_bound`. The file `warm_start` keeps
    `warm_start_answers` of them at most, for when there is no database.
    """

    responders: list[ResponderConfig]
    database: DatabaseConfig = DatabaseConfig()
    host: str = "127.0.0.1"
    port: Port = 6960
    admin_host: str = "127.0.0.1"
    admin_port: Port = 6961
    cached_answers: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    cache_megabytes: Annotated[int, msgspec.Meta(ge=1)] = 96
    keyless: bool = False
    edge_bound: timedelta = timedelta(hours=12)
    warm_start: Path | None = None
    warm_start_answers: Annotated[int, msgspec.Meta(ge=1)] = 100_000


class UnitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time-stamping unit: its certificate, the intermediates above it, and its key; or its key list (`keys`)."""

    certificate: Path | None = None
    key: KeyURI | None = None
    chain: Path | None = None
    keys: Path | None = None


class TSAProfileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of token, at its own path `/tsa/NAME`; the profile named `default` is at `/` as well.

    `units`: names of units in order; the first that is in force and not frozen stamps, so a successor behind its
    predecessor takes over when that one ends, and before it takes over as soon as it begins. `policy`: the OID that
    every token carries; the default is the best-practice policy of ETSI EN 319 421 §5.2. `accuracy`: what tokens claim;
    the clock must be at least this good. `hashes`: accepted for imprints. `chain`: the intermediates travel with the
    unit's certificate. `qualified`: tokens say that they are qualified (EN 319 422 §9.1); their units stamp for no
    other profile. `require_nonce`: requests without one are refused.

    `authentication`: `required` serves clients of the `credentials` file only. `requests_per_second` bounds, in the
    long run, what one client gets (None: no bound); `burst` is what it may ask for at once after a pause.
    """

    units: Annotated[list[str], msgspec.Meta(min_length=1)]
    policy: str = "0.4.0.2023.1.1"
    accuracy: timedelta = timedelta(seconds=1)
    hashes: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["SHA-256", "SHA-384", "SHA-512", "SHA3-256", "SHA3-384", "SHA3-512"]
    )
    chain: bool = True
    qualified: bool = False
    require_nonce: bool = False
    authentication: Literal["none", "required"] = "none"
    requests_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1)] = 200


class ClockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an instant may be stamped (ETSI EN 319 421 clause 7.7.2).

    `mode`: `enforce` refuses to stamp while the clock cannot back it, `warn` stamps all the same and says so in log and
    metrics (for demonstrations only). `sources`: who is asked about the clock; all of them must vouch for it.
    `ntp_servers`: `host` or `host:port`, at least three, each asked every `ntp_poll`; a measurement is relied on for
    `holdover`. `chrony`: where chronyd answers monitoring commands. A clock that may be further off than `warn_at`
    (half of the accuracy unless set) is soon out of sync; after a loss it must be better than that for `recovery`.
    `leap_second`: `pause` stamps nothing during it, `stop` nothing from then until the next start, `none` lets it be
    a step like any other.
    """

    mode: Literal["enforce", "warn"] = "enforce"
    sources: Annotated[tuple[Literal["kernel", "chrony", "ntp"], ...], msgspec.Meta(min_length=1)] = ("kernel",)
    ntp_servers: tuple[str, ...] = ()
    ntp_poll: timedelta = timedelta(seconds=16)
    holdover: timedelta = timedelta(minutes=1)
    chrony: str = "127.0.0.1:323"
    warn_at: timedelta | None = None
    recovery: timedelta = timedelta(seconds=10)
    leap_second: Literal["none", "pause", "stop"] = "pause"


class TSAConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time-stamp authority.

    `units` and `profiles` by their names. `self_check`: every token is read again before it leaves; its signature is
    verified always (`full`), or for EC keys in files by samples (`content`). `credentials`: a file that says who the
    clients are, for profiles with authentication.
    """

    units: dict[str, UnitConfig]
    profiles: dict[str, TSAProfileConfig]
    database: DatabaseConfig = DatabaseConfig()
    host: str = "127.0.0.1"
    port: Port = 3161
    admin_host: str = "127.0.0.1"
    admin_port: Port = 3162
    self_check: Literal["full", "content"] = "full"
    credentials: Path | None = None
    clock: ClockConfig = ClockConfig()


class RegistryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The registry: HTTPS for CAs that push, and whoever fetches what the others publish.

    `certificate` and `key`: the TLS server's, PEM. `clients`: PEM file of the CAs whose client certificates are looked
    at; without it only API tokens count. `client_crls`: CRLs of those CAs. `spool`: a folder with a subfolder for each
    authority, named as the authority, into which CRLs are dropped. `fetch_crls`: whether this process fetches the CRLs
    of the authorities' policies. `responders`: URLs of the OCSP responders that the CRLs are compared with; without any
    they are compared with the store only. `most_changes`: in one call.
    """

    certificate: Path
    key: Path
    clients: Path | None = None
    client_crls: tuple[Path, ...] = ()
    spool: Path | None = None
    fetch_crls: bool = True
    responders: tuple[str, ...] = ()
    most_changes: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10_000
    database: DatabaseConfig = DatabaseConfig()
    host: str = "127.0.0.1"
    port: Port = 8443
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8444


class PresignConfig(ResponderConfig, frozen=True, forbid_unknown_fields=True):
    """An authority whose answers are signed ahead: whatever its responder is, and beside it `hashes`, with which
    CertIDs (one answer for each), `signatures_per_second`, the most that the key is asked for (None: no bound), and
    `in_flight`, the most at one moment.
    """

    hashes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("SHA-1", "SHA-256")
    signatures_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4


class PublisherConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The publisher: signs the answers of these authorities ahead, for responders with `answers = "published"`, and
    keeps the heartbeat by which copies of the database know their age; without `responders` it does only that.
    """

    responders: list[PresignConfig] = []
    database: DatabaseConfig = DatabaseConfig()
    admin_host: str = "127.0.0.1"
    admin_port: Port = 6964


class ApprovalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who must approve what is done to key lists. `approvers`: PEM file of public keys or certificates; so many of them
    (`required`) must have signed. `memory`: a folder of the service's own, where it notes which keys were retired.
    """

    approvers: Path
    required: Annotated[int, msgspec.Meta(ge=1)]
    memory: Path | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file; each service reads its own table."""

    ocsp: OCSPConfig | None = None
    tsa: TSAConfig | None = None
    registry: RegistryConfig | None = None
    publisher: PublisherConfig | None = None
    approval: ApprovalConfig | None = None


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check the file. Raises `ConfigError` with file, line and reason."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    _override(document, environment)
    folder = path.resolve().parent

    def decode(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str):
            return folder / value
        if kind is KeyURI and isinstance(value, str):
            return KeyURI(value, folder)
        raise NotImplementedError(kind)  # msgspec's way to be told "not mine"

    try:
        return msgspec.convert(document, Config, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}{_line_of(text, str(error))}: {error}") from error


def _override(document: dict[str, object], environment: Mapping[str, str]) -> None:
    for variable, value in environment.items():
        table_name, _, key = variable.removeprefix(_ENVIRONMENT_PREFIX).lower().partition("__")
        table = document.get(table_name)
        if variable.startswith(_ENVIRONMENT_PREFIX) and key and isinstance(table, dict):
            table[key] = int(value) if value.isdigit() else _WORDS.get(value, value)
    url = environment.get("DATABASE_URL")
    if url:
        for name, table in document.items():
            if isinstance(table, dict) and name != "approval" and "database" not in table:
                table["database"] = {"url": url}


def _line_of(text: str, message: str) -> str:
    """`:LINE` of the key that the message quotes, or of the last key in its `$.path`; nothing when there is none."""
    named = re.search(r"unknown field `([^`]+)`", message) or re.search(r"at `\$.*?([A-Za-z_]+)[^A-Za-z_`]*`$", message)
    if named:
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*\[*(?:[\w.]+\.)?{re.escape(named[1])}\]*\s*(=|$)", line):
                return f":{number}"
    return ""
