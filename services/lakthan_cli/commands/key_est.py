"""`lakthan keys reenroll`: a new certificate for a short-lived responder or unit, by EST, into its key list.

Made for a timer: it does nothing while enough of the certificate's life is left, and nothing by halves.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.config import KeyURI, load
from lakthan.errors import ConfigError
from lakthan.keys import generate, key_list, open_signer
from lakthan.keys.csr import Purpose, certification_request
from lakthan_cli.commands.key_lists import issuers_of
from lakthan_cli.commands.text import moment
from lakthan_cli.keys import est, lists

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.certificates import CertificateView
    from lakthan.config import Config
    from lakthan.keys.key_list import Found, ListedKey
    from lakthan_cli.keys.est import Server
    from lakthan_cli.keys.lists import Target

_FILE = click.Path(dir_okay=False, path_type=Path)
_NOW = "%Y%m%dT%H%M%SZ"


class Share(click.ParamType[float]):
    """A part of a whole: `30%`."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Between 0 and 1."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%", str(value))
        if not found or float(found[1]) > 100:
            self.fail(f"{value!r} is no share: write 30%", param, ctx)
        return float(found[1]) / 100


class ISODuration(click.ParamType[timedelta]):
    """A duration as the configuration has them: `PT10M`."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration."""
        try:
            return value if isinstance(value, timedelta) else msgspec.convert(value, timedelta)
        except msgspec.ValidationError:
            self.fail(f"{value!r} is no duration: write PT10M", param, ctx)


class _EST(TypedDict):
    """What is said of the EST server."""

    url: str
    est_ca: Path
    label: str
    client_certificate: Path | None
    client_key: Path | None
    user_file: Path | None


@dataclass(frozen=True, slots=True)
class _Renewal:
    """One list, and its key that lasts longest, which is to be renewed."""

    config: Config
    whose: Target
    entry: ListedKey
    found: Found

    def left(self, now: datetime) -> float:
        """The share of its certificate's life that is left."""
        view = self.found.view
        return (view.not_after - now) / (view.not_after - view.not_before)


@click.command()
@click.argument("path", metavar="LIST", type=_FILE)
@click.option(
    "--config", "config_path", type=_FILE, required=True, help="The service's configuration, which names LIST."
)
@click.option("--est", "url", required=True, metavar="URL", help="https://HOST[:PORT] of the EST server.")
@click.option(
    "--est-ca", type=_FILE, required=True, help="PEM of the CA of the EST server's TLS certificate; no other counts."
)
@click.option("--label", default="", help="The label of the CA, where the server has several.")
@click.option("--client-certificate", type=_FILE, help="PEM of the TLS client's certificate.")
@click.option("--client-key", type=_FILE, help="PEM of its key.")
@click.option("--user-file", type=_FILE, help="A file whose first line is user:password, for HTTP Basic.")
@click.option("--new-key", metavar="URI", help="Make a new key there, {now} being the time.  [default: the same key]")
@click.option("--when-left", type=Share(), default="30%", show_default=True, help="Nothing is done while more is left.")
@click.option(
    "--patience", type=ISODuration(), default="PT10M", show_default=True, help="How long the server may let us wait."
)
@click.option("--ca", type=_FILE, help="PEM of the responder's CA.  [default: asked of the database]")
@click.option("--out", type=_FILE, help="With approval: where the act goes that approvers sign.")
def reenroll(
    path: Path,
    *,
    config_path: Path,
    new_key: str | None,
    when_left: float,
    patience: timedelta,
    ca: Path | None,
    out: Path | None,
    **server: Unpack[_EST],
) -> None:
    """Have the certificate of LIST's newest key renewed by EST (RFC 7030), and put it into LIST.

    For a timer. The certificate is checked as by `keys install`; what breaks the profile is refused, and nothing is
    changed. Keys of LIST that have ended are removed from it.
    """
    config = load(config_path)
    renewal = _renewal(config, lists.target_of(config, path))
    left = renewal.left(datetime.now(UTC))
    name = renewal.entry.name
    if left > when_left:
        click.echo(f"{name} has {left:.0%} of its life left: nothing to do before {when_left:.0%}")
        return
    if renewal.whose.approvers is not None and out is None:
        raise ConfigError("approvers must sign what comes into this list: say --out FILE for the act")
    asked = est.Server(
        server["url"],
        server["est_ca"],
        server["label"],
        server["client_certificate"],
        server["client_key"],
        server["user_file"],
    )
    # Before a key is made.
    asked.tls()
    asked.authorization()
    key = renewal.entry.key if new_key is None else _new_key(new_key, renewal)
    view = asyncio.run(_enroll(renewal, KeyURI(key, path.resolve().parent), asked, patience))
    _install(renewal, view, key, ca=ca, out=out)


def _renewal(config: Config, whose: Target) -> _Renewal:
    now = datetime.now(UTC)
    found = [
        (key_list.find(entry, whose.path), entry)
        for entry in key_list.read(whose.path)
        if entry.retired is None or entry.retired > now
    ]
    if not found:
        raise ConfigError(f"{whose.path} has no key to renew: install the first one")
    newest, entry = max(found, key=lambda each: each[0].view.not_after)
    return _Renewal(config, whose, entry, newest)


def _new_key(pattern: str, renewal: _Renewal) -> str:
    """Make a key of the same kind. Raises `ConfigError`."""
    if "{now}" not in pattern:
        raise ConfigError("--new-key needs {now} in it, because a key is never overwritten: file:ocsp-{now}.key")
    uri = pattern.replace("{now}", f"{datetime.now(UTC):{_NOW}}")
    generate.generate(
        KeyURI(uri, renewal.whose.path.resolve().parent), _kind(renewal.found.view.certificate.public_key())
    )
    click.echo(f"made a key: {uri}")
    return uri


def _kind(public_key: PublicKeyTypes) -> str:
    match public_key:
        case ec.EllipticCurvePublicKey():
            return "P-256" if public_key.key_size == 256 else "P-384"
        case rsa.RSAPublicKey():
            return f"RSA-{public_key.key_size}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case mldsa.MLDSA65PublicKey():
            return "ML-DSA-65"
    raise ConfigError(f"no new {type(public_key).__name__} can be made here: make one, and install it")


async def _enroll(renewal: _Renewal, key: KeyURI, server: Server, patience: timedelta) -> CertificateView:
    """The new certificate. RFC 7030 §4.2.2: subject and subjectAltName stay as they are."""
    view = renewal.found.view
    purpose = Purpose.TSA if isinstance(renewal.whose.of, tuple) else Purpose.OCSP
    signer = await asyncio.to_thread(open_signer, key)
    try:
        request = await certification_request(signer, view.subject, purpose, more_extensions=_alternative_name(view))
    finally:
        await signer.aclose()

    def waiting(pause: timedelta) -> None:
        click.echo(f"the EST server asks to come again in {pause}", err=True)

    views = await est.reenroll(server, request, patience=patience, waiting=waiting)
    new = est.certificate_of(views, signer.public_key)
    if new.subject != view.subject:
        raise est.ESTError(f"the EST server certifies {new.name}, and not {view.name}")
    if new.not_after <= view.not_after:
        raise est.ESTError(f"the new certificate ends at {moment(new.not_after)}, no later than the one that there is")
    return new


def _alternative_name(view: CertificateView) -> bytes:
    for extension in view.certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            critical = b"\x01\x01\xff" if extension.critical else b""
            oid = der.object_identifier(extension.oid.dotted_string)
            return der.sequence(oid, critical, der.octet_string(extension.value.public_bytes()))
    return b""


def _install(renewal: _Renewal, view: CertificateView, key: str, *, ca: Path | None, out: Path | None) -> None:
    """Put the certificate beside the list and into it; if it is refused, it is gone again."""
    whose, now = renewal.whose, datetime.now(UTC)
    stem = re.sub(r"-\d{8}T\d{6}Z$", "", Path(renewal.entry.certificate).stem)
    certificate = whose.path.resolve().parent / f"{stem}-{now:{_NOW}}.pem"
    with key_list.changing(whose.path):
        try:
            with certificate.open("xb") as file:
                file.write(view.certificate.public_bytes(Encoding.PEM))
        except OSError as error:
            raise ConfigError(f"{certificate} cannot be written: {error.strerror}") from error
        try:
            chain = renewal.found.chain
            change = lists.installation(whose, certificate, key, chain=chain, at=now.replace(microsecond=0))
            found = key_list.find(change.entry, whose.path)
            asyncio.run(_check(renewal, found, ca))
            if whose.approvers is None:
                key_list.write(whose.path, lists.without_ended(change.entries, whose.path, now))
            elif out is not None:
                out.write_text(change.act.text, encoding="utf-8")
        except BaseException:
            certificate.unlink()
            raise
    if whose.approvers is not None:
        click.echo(f"wrote {certificate.name} and the act {out}: when it is approved, install it")
    else:
        click.echo(f"installed {change.entry.name} for the {whose.name}, until {moment(view.not_after)}")


async def _check(renewal: _Renewal, found: Found, ca: Path | None) -> None:
    await renewal.whose.check(found, await issuers_of(renewal.config, renewal.whose, ca))
