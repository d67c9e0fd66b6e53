"""The TLS door: the server's own key, the CAs of the clients, and whether a client's certificate still counts.

TLS asks every client for a certificate and takes none as an answer; one that does not come from the CAs of `clients` is
turned away by TLS itself. Whether a certificate is in force, and whether it was revoked, is decided here for every
request and not in the handshake: a client that is refused then reads why, instead of a bare alert, and the refusal can
be put on record; and a connection that outlives a revocation is of no use.

Rules it lives by:

- TLS 1.2 at least (RFC 9325 §3.1.1).
- A client certificate is issued directly by a CA of the file. That CA's CRL, where the configuration names one, must be
  signed by it and in date: a CRL that ran out refuses everybody whom it covers.
- Files are read again when they change, without a restart; a broken file changes nothing but the log.

Trusted: whoever can write the files of the configuration decides who may knock.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        issuer = next((each for each in self._issuers if view.issued_by(each)), None)
        if issuer is None or not issuer.not_before <= now <= issuer.not_after:
            raise Problem(
                "certificate-status-unknown",
                f"the certificate {view.name} was not issued by a CA of the registry's clients that is in force",
                hint="use a certificate that one of those CAs issued itself; ask the registrar which ones they are",
            )
        self._check_revocation(view, issuer, now)

    def _check_revocation(self, view: CertificateView, issuer: CertificateView, now: datetime) -> None:
        ours = [each for each in self._crls if each.issuer is issuer]
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
                    f"the CRL of {issuer.name} is out of date, so nobody can tell whether {view.name} was revoked",
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
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a CRL: {error}") from error
    raise ConfigError(f"the CRL {path} was not signed by any CA of `clients`")


def client_certificate(http_request: web.BaseRequest) -> CertificateView | None:
    """The certificate that this connection's client proved to have; None without one."""
    transport = http_request.transport
    connection = None if transport is None else transport.get_extra_info("ssl_object")
    encoded = None if connection is None else connection.getpeercert(binary_form=True)
    return None if encoded is None else CertificateView.from_der(encoded)


class HTTPSFront:
    """A bound public port that speaks TLS. `port` is the real one when 0 was asked for."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner = runner
        self.port = port

    @classmethod
    async def open(cls, application: web.Application, host: str, port: int, context: ssl.SSLContext) -> HTTPSFront:
        """Listen and serve. Raises `ConfigError` when the address cannot be had."""
        runner = web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            shutdown_timeout=_DRAIN_SECONDS,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=context, backlog=1024).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        return cls(runner, runner.addresses[0][1])

    async def close(self) -> None:
        """Stop accepting, let requests in flight finish, close."""
        await self._runner.cleanup()
