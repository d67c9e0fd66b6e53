"""The one configuration file: TOML, read into typed structs, unknown keys refused with their line.

Secrets are paths, never values. Relative paths start at the file's folder; `${CREDENTIALS_DIRECTORY}` in a path is the
folder of systemd's LoadCredential=. A scalar can be overridden from the environment for containers:
`LAKTHAN_OCSP__PORT=8080` sets `port` under `[ocsp]`, and `DATABASE_URL` stands in where a service's database is not
given.

Durations are ISO 8601 (`PT1H`, `P7D`).

What an option means is said here and nowhere else: in the text below it, of which `python -m support.configuration
--write` makes the tables of docs/configuration.md (Markdown; links start there). A text may end with `Default: …` where
the value in the code does not say it all.
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
_CREDENTIALS = "${CREDENTIALS_DIRECTORY}"
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
    """Where the store is."""

    url: str = ""
    """`postgresql://user@host/database?…`, without a password; `passfile=` may name a pgpass file. Default:
    `DATABASE_URL`"""
    password_file: Path | None = None
    """A file whose first line is the password."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    """The pool's size; the OCSP responder uses one more to listen for changes. The publisher has two, one more for each
    authority, and one for the heartbeat, whatever this says."""

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
    first is the default. `profile` gives whatever is not set here.
    """

    authority: str
    """The authority's name in the store."""
    certificate: Path | None = None
    """PEM of the delegated responder certificate; it must be issued directly by that authority, for OCSP signing alone
    (RFC 6960 §4.2.2.2). Default: required for `signed`"""
    key: KeyURI | None = None
    """Where its private key lives, as a [URI](#keys). Default: required for `signed`"""
    keys: Path | None = None
    """A [key list](keys.md) instead of `certificate` and `key`: keys then come and go without a restart."""
    answers: Literal["signed", "published"] = "signed"
    """`signed` here, or `published`: what an offline CA signed in a [ceremony](ceremony.md), or the
    [publisher](publishing.md) ahead, is given out as it is."""
    profile: str = "pdf-ltv"
    """The bundle of rules [below](#profiles)."""
    validity: timedelta | None = None
    """nextUpdate − thisUpdate: how long clients may rely on an answer. Default: the profile's"""
    refresh: timedelta | None = None
    """After this an answer is signed anew. On purpose apart from `validity`, so that clients which look at the age of
    an answer are content as well as those which store it. Default: the profile's"""
    max_age: timedelta | None = None
    """How long HTTP caches may keep an answer at most; a revocation reaches everybody behind one within this time.
    Default: the profile's"""
    non_issued: Literal["unknown", "revoked", "unauthorized"] | None = None
    """What is said of serial numbers that were never announced: `unknown`, `revoked` (with extended-revoke, RFC 6960
    §4.4.8), `unauthorized`. Default: the profile's"""
    signed_requests: Literal["ignore", "verify", "require"] = "ignore"
    """Signatures of requests are ignored, verified where there is one (`verify`), or required (`require`)."""
    requestors: Path | None = None
    """PEM of the CAs that signers of requests are certified by."""
    dual_hash: bool = False
    """Answers carry a SHA-1 and a SHA-256 CertID (RFC 9919 §3.2.1); some clients take only one."""
    cert_hash: bool = False
    """Answers carry the hash of the certificate, where the store has it."""
    final: bool = False
    """The CA has ended: answers hold until 99991231235959Z (EN 319 411-2 CSS-6.3.10-11)."""


class OCSPConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The OCSP responder."""

    responders: list[ResponderConfig]
    """A table for each authority, below."""
    database: DatabaseConfig = DatabaseConfig()
    """A table, below."""
    host: str = "127.0.0.1"
    """Where OCSP is answered."""
    port: Port = 6960
    """Where OCSP is answered; 0 takes a free one."""
    admin_host: str = "127.0.0.1"
    """Where health and metrics are; never publish this port."""
    admin_port: Port = 6961
    """Where health and metrics are; never publish this port."""
    cached_answers: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    """How many answers the response cache of a worker keeps, and of how many certificates at most it remembers the
    status (never more than 32,768); 0 keeps none."""
    cache_megabytes: Annotated[int, msgspec.Meta(ge=1)] = 96
    """How much memory they may take, about 3 KB each; the first bound that is reached counts."""
    outage_bound: timedelta = timedelta(0)
    """For how long after the database was last heard the answers that are remembered may be given, and the process
    is [ready](decisions/0022-readiness.md) for requests; zero: without the database nothing is answered."""
    clock_tolerance: timedelta = timedelta(minutes=1)
    """How far this machine's clock may be from the database's, at least `PT5S`; beyond it nothing is answered, because
    nobody knows which of the two is wrong, and what is dated too late is believed too long."""
    connections: Annotated[int, msgspec.Meta(ge=16)] = 4096
    """How many connections a worker has at most; when there are more, the source that has most of them
    [makes room](decisions/0027-floods.md). The limit of open files is raised for it as far as it may be."""
    proxies: list[str] = msgspec.field(default_factory=list)
    """Addresses and networks (`10.0.0.0/8`) of [reverse proxies](proxies.md), which are many clients each: they are
    never limited to a share of what can be answered."""
    keyless: bool = False
    """At the [edge](edge.md): answers come from a copy of the database (a standby or a subscriber), all of them
    `published`, and no key is opened; also `lakthan serve ocsp --keyless`."""
    edge_bound: timedelta = timedelta(hours=12)
    """Keyless: nothing is answered that is older than this, and never beyond an answer's nextUpdate."""
    warm_start: Path | None = None
    """Keyless: a file in which answers are kept, for when there is no database."""
    warm_start_answers: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    """How many a snapshot of them holds at most, about 1 KB each; the ones that were asked for last come first."""


class UnitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time-stamping unit: its certificate, the intermediates above it, and its key; or its key list."""

    certificate: Path | None = None
    """PEM of the unit's certificate: extendedKeyUsage critical and timeStamping alone (RFC 3161 §2.3). Default:
    required without `keys`"""
    key: KeyURI | None = None
    """Where its private key lives, as a [URI](#keys). Default: required without `keys`"""
    chain: Path | None = None
    """PEM of the issuers, nearest first; they travel in tokens when a client asks for certificates, a self-signed root
    never does."""
    keys: Path | None = None
    """A [key list](keys.md) instead of `certificate` and `key`: keys then come and go without a restart, and the unit
    stays one for its profiles."""


class TSAProfileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of token, at its own path `/tsa/NAME`; the profile named `default` is at `/` as well."""

    units: Annotated[list[str], msgspec.Meta(min_length=1)]
    """Names of units, in order: the first that is in force and not frozen stamps, token by token. So a successor behind
    its predecessor takes over when that one ends, and before it takes over as soon as it begins."""
    policy: str = "0.4.0.2023.1.1"
    """The policy OID of every token; the default is the best-practice policy of ETSI EN 319 421 §5.2."""
    accuracy: timedelta = timedelta(seconds=1)
    """What tokens claim, `PT0.001S` to `PT1S` under the default policy; while the clock may be further off nothing is
    stamped here."""
    hashes: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["SHA-256", "SHA-384", "SHA-512", "SHA3-256", "SHA3-384", "SHA3-512"]
    )
    """What imprints may be made with."""
    chain: bool = True
    """The intermediates travel with the unit's certificate when a client asks for certificates; many verifiers need
    them."""
    qualified: bool = False
    """Tokens say that they are qualified (EN 319 422 §9.1); units of such a profile may serve no other kind."""
    require_nonce: bool = False
    """Requests without a nonce are refused (badRequest); PDF signers often send none."""
    authentication: Literal["none", "required"] = "none"
    """`required` serves clients of the `credentials` file only."""
    requests_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """What one client may ask for in the long run; beyond it 429 with Retry-After. Default: no limit"""
    burst: Annotated[int, msgspec.Meta(ge=1)] = 200
    """What it may ask for at once after a pause; signing tools ask for a hundred tokens in seconds."""


class ClockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an instant may be stamped (ETSI EN 319 421 clause 7.7.2)."""

    mode: Literal["enforce", "warn"] = "enforce"
    """`enforce` refuses to stamp while the clock cannot back it; `warn` stamps all the same, loudly in log and metrics,
    and is for demonstrations."""
    sources: Annotated[tuple[Literal["kernel", "chrony", "ntp"], ...], msgspec.Meta(min_length=1)] = ("kernel",)
    """Who is asked about the clock; all of them must vouch for it. `kernel`: what it was told by the daemon that
    disciplines it (adjtimex); `chrony`: what chronyd itself says; `ntp`: servers that we ask ourselves."""
    ntp_servers: tuple[str, ...] = ()
    """`host` or `host:port`, three or more; the majority of all that are listed must agree on the time, so with three
    one may fail or lie."""
    ntp_poll: timedelta = timedelta(seconds=16)
    """How often each of them is asked; ask strangers' servers less often."""
    holdover: timedelta = timedelta(minutes=1)
    """How long an answer of a server is relied on, the bound growing by 500 ppm all the while; longer than
    `ntp_poll`."""
    chrony: str = "127.0.0.1:323"
    """Where chronyd answers monitoring commands."""
    warn_at: timedelta | None = None
    """A clock that may be further off is *soon out of sync*: tokens go on, log and metrics say so. Default: half of
    `accuracy`"""
    recovery: timedelta = timedelta(seconds=10)
    """After a loss the clock must have been better than `warn_at` for so long."""
    leap_second: Literal["none", "pause", "stop"] = "pause"
    """`pause`: no token from one second before an announced leap second until one second after; `stop`: none until the
    next start; `none`: a step like any other."""


class TSAConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time-stamp authority."""

    units: dict[str, UnitConfig]
    """The time-stamping units by their names, a table each, below."""
    profiles: dict[str, TSAProfileConfig]
    """The kinds of tokens by their names, a table each, below."""
    database: DatabaseConfig = DatabaseConfig()
    """A table, below."""
    host: str = "127.0.0.1"
    """Where time-stamps are given."""
    port: Port = 3161
    """Where time-stamps are given; 0 takes a free one."""
    admin_host: str = "127.0.0.1"
    """Where health and metrics are; never publish this port."""
    admin_port: Port = 3162
    """Where health and metrics are; never publish this port."""
    connections: Annotated[int, msgspec.Meta(ge=16)] = 4096
    """How many connections a worker has at most; when there are more, the source that has most of them
    [makes room](decisions/0027-floods.md). The limit of open files is raised for it as far as it may be."""
    proxies: list[str] = msgspec.field(default_factory=list)
    """Addresses and networks (`10.0.0.0/8`) of [reverse proxies](proxies.md), which are many clients each: they are
    never limited to a share of what can be answered."""
    self_check: Literal["full", "content"] = "full"
    """What is looked at in every token before it leaves. `full`: its contents, and its signature with the certificate's
    key. `content`: the same, except that of P-256 and P-384 keys in files only samples (one in 32) are verified, which
    doubles the rate of P-256; devices, RSA and ML-DSA are always verified ([decision
    0013](decisions/0013-self-check-cost.md))."""
    credentials: Path | None = None
    """The file of the clients, for profiles with authentication, below."""
    clock: ClockConfig = ClockConfig()
    """A table, below."""


class RegistryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The registry: HTTPS for CAs that push, and whoever fetches what the others publish."""

    certificate: Path
    """PEM of the TLS certificate with its chain; read again when it changes."""
    key: Path
    """PEM of its key without a passphrase; read again when it changes."""
    clients: Path | None = None
    """PEM of the CAs whose client certificates are looked at; without it only API tokens count."""
    client_crls: tuple[Path, ...] = ()
    """CRLs of those CAs, PEM or DER; one that is out of date refuses every client of its CA. Read again when they
    change."""
    spool: Path | None = None
    """A folder with a subfolder for each authority, named as the authority, into which its CRLs are dropped."""
    fetch_crls: bool = True
    """This process fetches the CRLs of the authorities' policies, and compares them with what OCSP says; one registry
    of several is enough."""
    responders: tuple[str, ...] = ()
    """URLs of the OCSP responders that this comparison asks; without any, CRLs are compared with the store only."""
    most_changes: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10_000
    """Changes in one call, at most."""
    database: DatabaseConfig = DatabaseConfig()
    """A table, below; its login is a member of `lakthan_publisher`, `lakthan_registrar` and `lakthan_auditor`."""
    host: str = "127.0.0.1"
    """Where HTTPS is served."""
    port: Port = 8443
    """Where HTTPS is served; 0 takes a free one."""
    admin_host: str = "127.0.0.1"
    """Where health and metrics are; never publish this port."""
    admin_port: Port = 8444
    """Where health and metrics are; never publish this port."""


class PresignConfig(ResponderConfig, frozen=True, forbid_unknown_fields=True):
    """An authority whose answers are signed ahead: whatever its responder is, and beside it how it is signed."""

    hashes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("SHA-1", "SHA-256")
    """With which CertIDs: one answer for each."""
    signatures_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """The most that the key is asked for; certificates × hashes ÷ `refresh` must be less. Responders that name the same
    key share it. Default: no limit"""
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """The most that a device is asked for at one moment; leave the rest of its sessions to others."""


class PublisherConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The publisher: signs the answers of these authorities ahead, for responders with `answers = "published"`, and
    keeps the heartbeat by which copies of the database know their age.
    """

    responders: list[PresignConfig] = []
    """A list of tables, below; without any, it keeps the heartbeat only."""
    database: DatabaseConfig = DatabaseConfig()
    """A table, below; its login is a member of `lakthan_presigner`."""
    admin_host: str = "127.0.0.1"
    """Where health and metrics are; never publish this port."""
    admin_port: Port = 6964
    """Where health and metrics are; never publish this port."""
    clock_tolerance: timedelta = timedelta(minutes=1)
    """How far this machine's clock may be from the database's, at least `PT5S`; beyond it nothing is signed, because
    what is dated too late is believed too long."""


class ApprovalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who must approve what is done to key lists."""

    approvers: Path
    """PEM file of the approvers' public keys or certificates: P-256, P-384, RSA, Ed25519."""
    required: Annotated[int, msgspec.Meta(ge=1)]
    """So many of them must have signed an act."""
    memory: Path | None = None
    """A folder that only the service can write, where it notes which keys were retired, so that no older list brings
    them back; without it, it remembers them until it ends."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the log says of requests, and where the audit lines go. Clients' addresses are nowhere in it."""

    requests: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    """The share of answers and tokens that get a line, evenly spread; *revoked* answers and refusals always do."""
    serials: bool = True
    """The line of an OCSP request names the certificate asked about; `false` where that is nobody's business."""
    lines_per_second: Annotated[int, msgspec.Meta(ge=1)] = 20
    """How many lines of one event a process writes in a second at most, audit lines excepted; the next one says how
    many were left out. So a flood of requests cannot fill the disk."""
    audit: Path | None = None
    """A file for the [audit lines](logs.md#audit), which then leave standard error; it may be rotated at any time.
    `fd:3` is a file descriptor. Default: standard error"""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file; each service reads its own table."""

    ocsp: OCSPConfig | None = None
    tsa: TSAConfig | None = None
    registry: RegistryConfig | None = None
    publisher: PublisherConfig | None = None
    approval: ApprovalConfig | None = None
    log: LogConfig = LogConfig()


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check the file. Raises `ConfigError` with file, line and reason."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    _override(document, environment)
    folder = path.resolve().parent

    def decode(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str):
            return folder / _with_credentials(value, path, environment)
        if kind is KeyURI and isinstance(value, str):
            return KeyURI(_with_credentials(value, path, environment), folder)
        raise NotImplementedError(kind)  # msgspec's way to be told "not mine"

    try:
        return msgspec.convert(document, Config, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}{_line_of(text, str(error))}: {error}") from error


def _with_credentials(value: str, path: Path, environment: Mapping[str, str]) -> str:
    """A path or key URI in which the folder that systemd makes for a service's secrets may be named by its variable."""
    if _CREDENTIALS not in value:
        return value
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError(
            f"{path}: {value} names a credential, and there are none: start the service by systemd with "
            "LoadCredential=, or write the path itself"
        )
    return value.replace(_CREDENTIALS, folder)


def _override(document: dict[str, object], environment: Mapping[str, str]) -> None:
    for variable, value in environment.items():
        table_name, _, key = variable.removeprefix(_ENVIRONMENT_PREFIX).lower().partition("__")
        table = document.get(table_name)
        if variable.startswith(_ENVIRONMENT_PREFIX) and key and isinstance(table, dict):
            table[key] = int(value) if value.isdigit() else _WORDS.get(value, value)
    url = environment.get("DATABASE_URL")
    if url:
        for name, table in document.items():
            if isinstance(table, dict) and name not in ("approval", "log") and "database" not in table:
                table["database"] = {"url": url}


def _line_of(text: str, message: str) -> str:
    """`:LINE` of the key that the message quotes, or of the last key in its `$.path`; nothing when there is none."""
    named = re.search(r"unknown field `([^`]+)`", message) or re.search(r"at `\$.*?([A-Za-z_]+)[^A-Za-z_`]*`$", message)
    if named:
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*\[*(?:[\w.]+\.)?{re.escape(named[1])}\]*\s*(=|$)", line):
                return f":{number}"
    return ""
