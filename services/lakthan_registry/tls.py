"""The TLS door: the server's own key, the CAs of the clients, and whether a client's certificate still counts.

TLS asks every client for a certificate and takes none as an answer; one that does not come from the CAs of `clients` is
turned away by TLS itself. Whether a certificate is in force, and whether it was revoked, is decided here for every
request and not in the handshake: a client that is refused then reads why, instead of a bare alert, and the refusal can
be put on record; and a connection that outlives a revocation is of no use. Nor is one that says nothing: the head of
the first request has to be there in time, so that nobody can hold the door by being slow.

Rules it lives by:

- TLS 1.2 at least (RFC 9325 §3.1.1).
- A client certificate is issued directly by a CA of the file. That CA's CRLs, where the configuration names some, must
  be signed by a key that the file has for this CA's name, and in date: a CRL that ran out refuses everybody whom it
  covers. A CA may stand there several times, renewed or with a new key.
- Files are read again when they change, without a restart; a broken file changes nothing but the log.

Trusted: whoever can write the files of the configuration decides who may knock.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from aiohttp import web
from cryptography import x509

from lakthan.certificates import CertificateView, read_certificates
from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log
from lakthan_registry.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from lakthan.config import RegistryConfig

# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for: see the module's docstring.
_NO_CHECK_TIME = 0x200000
_LOOK_SECONDS = 2.0
# For the TLS handshake, and again for the head of the first request.
_PATIENCE = timedelta(seconds=15)
_LONGEST_HEAD = 64 * 1024  # more than aiohttp takes
_DRAIN_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 75.0


def server_context(config: RegistryConfig) -> ssl.SSLContext:
    """The TLS settings of the public port. Raises `ConfigError` that names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_key(context, config)
    if config.clients is not None:
        read_certificates(config.clients)  # says what is wrong in our words
        try:
            context.load_verify_locations(config.clients)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the clients' CAs {config.clients} cannot be used: {error}") from error
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # a CA of the file need not be a root
        context.verify_flags |= _NO_CHECK_TIME
    return context


def _load_key(context: ssl.SSLContext, config: RegistryConfig) -> None:
    read_certificates(config.certificate)
    try:
        # A password would be asked for on a terminal that is not there; '' makes that an error.
        context.load_cert_chain(config.certificate, config.key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"TLS cannot use {config.certificate} with the key {config.key}: {error}; the key must be PEM, without a "
            "passphrase, and belong to the first certificate of the file"
        ) from error


@dataclass(frozen=True, slots=True)
class _CRL:
    """A CRL of one of the clients' CAs, its signature verified."""

    crl: x509.CertificateRevocationList
    issuer: CertificateView
    next_update: datetime


class ClientCertificates:
    """What the registry knows of its clients' CAs. Raises `ConfigError` when a file is wrong at the start.

    `told`: hears, after every reading of the files, when the CRL of each CA ends.
    """

    def __init__(self, config: RegistryConfig, told: Callable[[Mapping[str, datetime]], None] | None = None) -> None:
        self._config = config
        self._told = told
        self._issuers: list[CertificateView] = []
        self._crls: list[_CRL] = []
        self._read()

    def check(self, view: CertificateView, now: datetime) -> None:
        """Raise `Problem` unless this certificate counts now: in force, from a CA of the file, not revoked."""
        if not view.not_before <= now <= view.not_after:
            raise Problem(
                "certificate-not-in-force",
                f"the certificate {view.name} is valid from {view.not_before:%Y-%m-%dT%H:%M:%SZ} to "
                f"{view.not_after:%Y-%m-%dT%H:%M:%SZ}",
                hint="renew the client certificate and have the registrar bind the new one to a credential",
            )
        issuers = [each for each in self._issuers if view.issued_by(each)]
        if not any(each.not_before <= now <= each.not_after for each in issuers):
            raise Problem(
                "certificate-status-unknown",
                f"the certificate {view.name} was not issued by a CA of the registry's clients that is in force",
                hint="use a certificate that one of those CAs issued itself; ask the registrar which ones they are",
            )
        self._check_revocation(view, now)

    def _check_revocation(self, view: CertificateView, now: datetime) -> None:
        # By name: a CA with a new key lists the certificates of its old one too (RFC 5280 §6.3.3).
        ours = [each for each in self._crls if each.crl.issuer == view.certificate.issuer]
        for each in ours:
            found = each.crl.get_revoked_certificate_by_serial_number(view.certificate.serial_number)
            if found is not None:
                since = found.revocation_date_utc
                raise Problem(
                    "certificate-revoked",
                    f"the certificate {view.name} was revoked by its CA at {since:%Y-%m-%dT%H:%M:%SZ}",
                    hint="get a new client certificate and have the registrar bind it to a credential",
                )
        for each in ours:
            if not each.crl.last_update_utc <= now <= each.next_update:
                raise Problem(
                    "certificate-status-unknown",
                    f"the CRL of {each.issuer.name} is out of date, so nobody can tell whether {view.name} was revoked",
                    hint="the registry's operator has to put the current CRL in place; a token works in the meantime",
                )

    async def watch(self, context: ssl.SSLContext) -> None:
        """Read the files again whenever one has changed, the server's own certificate too. Until cancelled."""
        seen = self._stamps()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            stamps = self._stamps()
            if stamps == seen:
                continue
            seen = stamps
            try:
                _load_key(context, self._config)
                self._read()
                if self._config.clients is not None:
                    # Only ever adds; whoever left the file is refused by `check`.
                    context.load_verify_locations(self._config.clients)
            except ConfigError as error:
                log.error("TLS stays as it was", problem=str(error))
            except Exception:  # noqa: BLE001 - a file that nobody thought of must not end the watch
                log.exception("TLS stays as it was")
            else:
                log.info("TLS files read", client_authorities=len(self._issuers), crls=len(self._crls))

    def _read(self) -> None:
        config = self._config
        if config.clients is None:
            if config.client_crls:
                raise ConfigError("client_crls without clients: name the CAs of the clients as well")
            return
        issuers = read_certificates(config.clients)
        self._crls = [_read_crl(path, issuers) for path in config.client_crls]
        self._issuers = issuers
        if self._told is not None:
            self._told({each.issuer.name: each.next_update for each in self._crls})

    def _stamps(self) -> list[tuple[int, int, int]]:
        config = self._config
        paths = [config.certificate, config.key, *config.client_crls]
        return [_stamp(path) for path in (*paths, *([config.clients] if config.clients else []))]

    def warnings(self, now: datetime) -> dict[str, str]:
        """For every CRL, what is wrong with it now ('' when nothing is)."""
        return {
            f"client CRL of {each.issuer.name}": "" if now <= each.next_update else "out of date" for each in self._crls
        }


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_crl(path: Path, issuers: Sequence[CertificateView]) -> _CRL:
    try:
        encoded = path.read_bytes()
        read = x509.load_pem_x509_crl if encoded.lstrip().startswith(b"-----") else x509.load_der_x509_crl
        crl = read(encoded)
        for issuer in issuers:
            key = issuer.certificate.public_key()
            if crl.issuer == issuer.certificate.subject and crl.is_signature_valid(key):  # type: ignore[arg-type]
                if crl.next_update_utc is None:
                    raise ConfigError(f"the CRL {path} does not say when it ends; a CRL of clients needs a nextUpdate")
                return _CRL(crl, issuer, crl.next_update_utc)
    except OSError as error:
        raise ConfigError(f"the CRL {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise ConfigError(f"{path} is not a CRL: {error}") from error
    raise ConfigError(f"the CRL {path} was not signed by any CA of `clients`")


def client_certificate(http_request: web.BaseRequest) -> CertificateView | None:
    """The certificate that this connection's client proved to have; None without one."""
    transport = http_request.transport
    connection = None if transport is None else transport.get_extra_info("ssl_object")
    encoded = None if connection is None else connection.getpeercert(binary_form=True)
    return None if encoded is None else CertificateView.from_der(encoded)


class _FirstHead(asyncio.Protocol):
    """A connection until the head of its first request is there; then aiohttp has it. Too slow: it is ended."""

    def __init__(self, serve: Callable[[], asyncio.Protocol], waiting: set[asyncio.Transport], seconds: float) -> None:
        self._serve = serve
        self._waiting = waiting
        self._seconds = seconds
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._waiting.add(self._transport)
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        if self._transport is None or not (
            b"\r\n\r\n" in self._received or b"\n\n" in self._received or len(self._received) > _LONGEST_HEAD
        ):
            return
        transport, self._transport = self._transport, None
        self._let_go(transport)
        protocol = self._serve()
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        protocol.data_received(self._received)

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        if self._transport is not None:
            self._let_go(self._transport)

    def _let_go(self, transport: asyncio.Transport) -> None:
        self._waiting.discard(transport)
        if self._timer is not None:
            self._timer.cancel()


class HTTPSFront:
    """A bound public port that speaks TLS. `port` is the real one when 0 was asked for."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server, waiting: set[asyncio.Transport]) -> None:
        self._runner = runner
        self._server = server
        self._waiting = waiting
        self.port: int = server.sockets[0].getsockname()[1]

    @classmethod
    async def open(
        cls,
        application: web.Application,
        host: str,
        port: int,
        context: ssl.SSLContext,
        *,
        patience: timedelta = _PATIENCE,
    ) -> HTTPSFront:
        """Listen and serve. `patience`: with a handshake, and with the head of a connection's first request.

        Raises `ConfigError` when the address cannot be had.
        """
        runner = web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            shutdown_timeout=_DRAIN_SECONDS,
        )
        await runner.setup()
        serve = runner.server
        assert serve is not None  # noqa: S101 - setup made it
        waiting: set[asyncio.Transport] = set()
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: _FirstHead(serve, waiting, patience.total_seconds()),
                host,
                port,
                ssl=context,
                ssl_handshake_timeout=patience.total_seconds(),
                backlog=1024,
            )
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        return cls(runner, server, waiting)

    async def close(self) -> None:
        """Stop accepting, let requests in flight finish, close."""
        self._server.close()
        for transport in list(self._waiting):
            transport.abort()
        await self._runner.cleanup()
