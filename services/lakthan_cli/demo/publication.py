"""The demo's publication point: the authorities' certificates, and CRLs signed when somebody asks.

Promises: a CRL lists what the database held at most `CRL_KEPT` before, expired certificates too, so that a signature
can be checked after its certificate has run out. When the database is away there is no CRL (503), never an old one.

Refuses to know: OCSP. Nothing here is shared with the responder, so that the two can be compared.

Lives by: RFC 5280 §5 (CRLs), RFC 2585 §4 (media types).

Trusted: it holds every authority's key, the root's too. That is what makes it a demo and not a CA.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import CRLReason
from lakthan_cli.demo.certificates import hash_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    import asyncpg

    from lakthan_cli.demo.certificates import Issuer

CRL_KEPT = timedelta(seconds=2)
CRL_VALIDITY = timedelta(days=1)


class Revocation(NamedTuple):
    """One entry of a CRL (RFC 5280 §5.1.2.6)."""

    serial_number: int
    revocation_time: datetime
    revocation_reason: CRLReason | None
    invalidity_date: datetime | None


def sign_crl(issuer: Issuer, revocations: Sequence[Revocation], now: datetime) -> bytes:
    """A complete CRL of `issuer`, DER, valid for a day. Its cRLNumber is the second in which it was signed."""
    this_update = now.astimezone(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(this_update)
        .next_update(this_update + CRL_VALIDITY)
        .add_extension(x509.CRLNumber(int(this_update.timestamp())), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for revocation in revocations:
        # Anything else is no serial number that this demo gave (RFC 5280 §4.1.2.2), and one entry that the library
        # refuses would leave everybody without a CRL. OCSP answers for it all the same.
        if 0 < revocation.serial_number < 2**159:
            builder = builder.add_revoked_certificate(_entry(revocation))
    return builder.sign(issuer.key, hash_of(issuer.key)).public_bytes(Encoding.DER)


class PublicationPoint:
    """`/ca/NAME.cer` and `/crl/NAME.crl` for every authority of the demo."""

    def __init__(self, pool: asyncpg.Pool, authorities: Mapping[str, Issuer]) -> None:
        """The pool's role must be allowed to read `certificate_status`."""
        self._pool = pool
        self._authorities = authorities
        self._crls: dict[str, tuple[datetime, bytes]] = {}
        self._locks = {name: asyncio.Lock() for name in authorities}

    async def crl(self, name: str, now: datetime) -> bytes:
        """The CRL of one authority. Raises `StoreUnavailable`."""
        async with self._locks[name]:
            signed_at, crl = self._crls.get(name, (None, b""))
            # A clock that was set back must not leave a CRL from the future in place.
            if signed_at is None or not signed_at <= now < signed_at + CRL_KEPT:
                crl = sign_crl(self._authorities[name], await self._revocations(name), now)
                self._crls[name] = now, crl
            return crl

    async def _revocations(self, name: str) -> list[Revocation]:
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT s.serial_number, s.revocation_time, s.revocation_reason, s.invalidity_date
                FROM certificate_status s JOIN authority a ON a.id = s.authority_id
                WHERE a.name = $1 AND s.cert_status = 'revoked'
                ORDER BY s.serial_number
                """,
                name,
            )
        return [
            Revocation(
                int.from_bytes(row["serial_number"], "big", signed=True),
                row["revocation_time"],
                None if row["revocation_reason"] is None else CRLReason(row["revocation_reason"]),
                row["invalidity_date"],
            )
            for row in rows
        ]

    def application(self) -> web.Application:
        """The two routes."""

        async def certificate(http_request: web.Request) -> web.Response:
            name = self._known(http_request)
            encoded = self._authorities[name].certificate.public_bytes(Encoding.DER)
            return web.Response(body=encoded, content_type="application/pkix-cert")

        async def crl(http_request: web.Request) -> web.Response:
            name = self._known(http_request)
            try:
                encoded = await self.crl(name, datetime.now(UTC))
            except StoreUnavailable as error:
                raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
            # No cache may keep it: whoever revokes in a demo wants to see it at once.
            return web.Response(
                body=encoded, content_type="application/pkix-crl", headers={"Cache-Control": "no-cache"}
            )

        application = web.Application()
        application.add_routes([web.get("/ca/{name}.cer", certificate), web.get("/crl/{name}.crl", crl)])
        return application

    def _known(self, http_request: web.Request) -> str:
        name = http_request.match_info["name"]
        if name not in self._authorities:
            raise web.HTTPNotFound(text=f"no authority {name!r} here; there are {', '.join(self._authorities)}\n")
        return name


@asynccontextmanager
async def serving(application: web.Application, host: str, port: int) -> AsyncIterator[None]:
    """Serve `application` for as long as the context lasts."""
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, shutdown_timeout=2).start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
        yield
    finally:
        await runner.cleanup()


def _entry(revocation: Revocation) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(revocation.serial_number)
        .revocation_date(revocation.revocation_time)
    )
    # "unspecified" is said by saying nothing (RFC 5280 §5.3.1).
    if revocation.revocation_reason:
        flag = x509.ReasonFlags(revocation.revocation_reason.label)
        builder = builder.add_extension(x509.CRLReason(flag), critical=False)
    if revocation.invalidity_date is not None:
        builder = builder.add_extension(x509.InvalidityDate(revocation.invalidity_date), critical=False)
    return builder.build()
