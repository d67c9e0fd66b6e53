"""The parts of the demo that can be tried without its services: addresses, the folder, the configuration, CRLs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509

from lakthan.certificates import read_certificates
from lakthan.config import load
from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.credentials import CredentialAdmin, CredentialReader, token_sha256
from lakthan.store.records import CRLReason
from lakthan_cli.demo import folder, pki
from lakthan_cli.demo.addresses import USUAL_PORTS, Addresses, choose, differences
from lakthan_cli.demo.announcement import announcement
from lakthan_cli.demo.certificates import Urls
from lakthan_cli.demo.configuration import services_toml
from lakthan_cli.demo.publication import PublicationPoint, Revocation, sign_crl
from lakthan_cli.demo.registration import register, serial_of
from lakthan_cli.demo.tokens import ensure_tokens
from support.database import OpenPool

ADDRESSES = Addresses("127.0.0.1", USUAL_PORTS)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def demo_pki(tmp_path_factory: pytest.TempPathFactory) -> pki.DemoPKI:
    """A demo PKI that no test changes."""
    return pki.make(tmp_path_factory.mktemp("demo"), Urls("http://127.0.0.1:6960", "http://127.0.0.1:6962"), NOW)


@contextmanager
def taken_port() -> Iterator[int]:
    """A port on which something listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_was_asked_for_and_is_taken_is_an_error() -> None:
    """The demo never listens elsewhere than told; it says which port is taken and what to do."""
    with taken_port() as port, pytest.raises(ConfigError, match=rf"port {port} .* taken .* leave the option out"):
        choose(None, {"ocsp": port}, None)


def test_a_taken_port_of_the_last_start_is_replaced_and_the_difference_is_told() -> None:
    """When another program sits on a port that the certificates name, the demo goes elsewhere and says what differs."""
    with taken_port() as port:
        last = Addresses("127.0.0.1", {**USUAL_PORTS, "ocsp": port})
        now = choose(None, {}, last)
    assert now.ports["ocsp"] != port
    assert any(f"name http://127.0.0.1:{port} for OCSP" in sentence for sentence in differences(last, now))


def test_all_ports_of_a_start_are_different_and_free_to_bind() -> None:
    """Five services get five ports, even where the usual ones are taken."""
    with taken_port() as port:
        ports = choose(None, {}, Addresses("127.0.0.1", dict.fromkeys(USUAL_PORTS, port))).ports
    assert len(set(ports.values())) == len(USUAL_PORTS)
    for number in ports.values():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", number))


def test_the_last_starts_addresses_are_used_again() -> None:
    """A second start listens where the certificates say, without being told."""
    first = choose("localhost", {}, Addresses("127.0.0.1", dict.fromkeys(USUAL_PORTS, 0)))
    assert choose(None, {}, first) == first
    assert differences(first, choose(None, {}, first)) == []


def test_a_host_that_is_not_this_machine_is_an_error() -> None:
    """An address of somebody else's machine gives a plain sentence."""
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1 .* try another --host"):
        choose("192.0.2.1", {}, None)


def test_urls_can_be_called_from_this_machine() -> None:
    """Listening everywhere is no address to call; IPv6 is written in brackets; admin ports stay on loopback."""
    assert Addresses("0.0.0.0", USUAL_PORTS).url("ocsp") == "http://127.0.0.1:6960"
    assert Addresses("::1", USUAL_PORTS).url("tsa") == "http://[::1]:3161"
    assert Addresses("::", USUAL_PORTS).url("ocsp") == "http://[::1]:6960"
    assert Addresses("192.0.2.1", USUAL_PORTS).url("tsa_admin") == "http://127.0.0.1:3162"


def test_the_addresses_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """What one start records, the next one finds; a damaged file is named."""
    assert folder.read_addresses(tmp_path) is None
    folder.write_addresses(tmp_path, ADDRESSES)
    assert folder.read_addresses(tmp_path) == ADDRESSES
    (tmp_path / "demo.json").write_text('{"host": 5}')
    with pytest.raises(ConfigError, match=r"demo\.json is damaged"):
        folder.read_addresses(tmp_path)


def test_a_demo_is_found_while_it_runs_and_not_after_it_was_killed(tmp_path: Path) -> None:
    """A file that a killed demo left behind does not pass for a running one."""
    running = folder.Running("postgresql://owner@/lakthan", "postgresql://registry@/lakthan")
    assert folder.read_running(tmp_path) is None
    program = (
        "import os, signal, sys; from pathlib import Path; from lakthan_cli.demo import folder\n"
        "directory = Path(sys.argv[1])\n"
        "with folder.locked(directory), folder.announced(directory, folder.Running('a', 'b')):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with folder.locked(tmp_path), folder.announced(tmp_path, running):
        assert folder.read_running(tmp_path) == running
        with pytest.raises(ConfigError, match="a demo is running in"), folder.locked(tmp_path):
            pass
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "running.json").exists()
    assert folder.read_running(tmp_path) is None


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A file where the folder should be gives a plain sentence."""
    (tmp_path / "demo").write_text("")
    with pytest.raises(ConfigError, match="name a folder of your own with --dir"), folder.locked(tmp_path / "demo"):
        pass


def test_the_services_can_read_their_configuration(tmp_path: Path) -> None:
    """The file that the demo writes is one that the services accept, with every responder and the unit."""
    urls = {"ocsp": 'postgresql://ocsp@/lakthan?host=/tmp/a"b', "tsa": "postgresql://tsa@/ຖານ", "registry": "x"}
    (tmp_path / "lakthan.toml").write_text(services_toml(ADDRESSES, urls), encoding="utf-8")
    config = load(tmp_path / "lakthan.toml", {})
    assert config.ocsp is not None
    assert config.tsa is not None
    assert config.registry is not None
    assert (config.registry.database.url, config.registry.port) == ("x", 8443)
    assert [responder.authority for responder in config.ocsp.responders] == ["root", "public-ca", "gov-ca", "tsa-ca"]
    assert (config.ocsp.database.url, config.tsa.database.url) == (urls["ocsp"], urls["tsa"])
    assert config.tsa.units["default"].certificate == tmp_path / "pki/tsu.pem"
    (tmp_path / "lakthan.toml").write_text(services_toml(ADDRESSES, {}), encoding="utf-8")
    config = load(tmp_path / "lakthan.toml", {"DATABASE_URL": "postgresql://elsewhere/db"})
    assert config.ocsp is not None
    assert config.ocsp.database.url == "postgresql://elsewhere/db"


def test_the_ready_line_is_one_line_with_all_urls() -> None:
    """Scripts wait for one line that begins with `lakthan demo ready` and find the URLs in it."""
    first, second, *_ = announcement(Path("my demo"), ADDRESSES).splitlines()
    assert first.startswith("lakthan demo ready")
    assert "ocsp=http://127.0.0.1:6960 tsa=http://127.0.0.1:3161 publication=http://127.0.0.1:6962" in first
    assert first.endswith("registry=https://127.0.0.1:8443 dir='my demo'")
    assert second == ""


def test_a_crl_says_what_is_on_record_and_nothing_else(demo_pki: pki.DemoPKI) -> None:
    """Reasons and invalidity dates are in the entries, `unspecified` is said by silence, and the CA's key signed it."""
    issuer = demo_pki.authorities["gov-ca"]
    then = NOW.replace(microsecond=0) - timedelta(days=1)
    crl = x509.load_der_x509_crl(
        sign_crl(
            issuer,
            [
                Revocation(5, then, CRLReason.KEY_COMPROMISE, then - timedelta(days=1)),
                Revocation(6, then, CRLReason.UNSPECIFIED, None),
                Revocation(7, then, CRLReason.CERTIFICATE_HOLD, None),
                Revocation(-1, then, None, None),
                Revocation(2**159, then, None, None),
            ],
            NOW,
        )
    )
    assert crl.is_signature_valid(issuer.certificate.public_key())  # type: ignore[arg-type]
    entries = {entry.serial_number: entry for entry in crl}
    assert set(entries) == {5, 6, 7}
    assert entries[5].extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise
    invalid_since = entries[5].extensions.get_extension_for_class(x509.InvalidityDate).value.invalidity_date_utc
    assert invalid_since == then - timedelta(days=1)
    assert len(entries[6].extensions) == 0
    assert entries[7].extensions.get_extension_for_class(x509.CRLReason).value.reason.value == "certificateHold"
    assert crl.last_update_utc <= NOW < (crl.next_update_utc or NOW)


async def test_the_demo_pki_is_registered_once_and_what_people_did_since_stays(
    demo_pki: pki.DemoPKI, open_as: OpenPool
) -> None:
    """The second start records nothing; a certificate that was released in between is not held again."""
    pool = await open_as("lakthan_registry")
    wanted = list(demo_pki.to_register())
    assert await register(pool, demo_pki) == len(wanted)
    writer = ChangeWriter(pool)
    authority = await AuthorityAdmin(pool).find_authority("public-ca")
    assert authority is not None
    held = serial_of(read_certificates(demo_pki.directory / "pki/held.pem")[0].certificate)
    await writer.unhold(authority.id, held, actor="test")
    assert await register(pool, demo_pki) == 0
    changes = [change.request.change.label for change in await writer.history(authority.id, held)]
    assert changes == ["issue", "hold", "unhold"]


async def test_the_publication_point_serves_certificates_and_fresh_crls(
    demo_pki: pki.DemoPKI, open_as: OpenPool
) -> None:
    """What the certificates' URLs promise is there, as DER with its media type, and a CRL has what was just revoked."""
    pool = await open_as("lakthan_registry")
    await register(pool, demo_pki)
    point = PublicationPoint(pool, demo_pki.authorities)
    async with TestClient(TestServer(point.application())) as client:
        for name, issuer in demo_pki.authorities.items():
            answer = await client.get(f"/ca/{name}.cer")
            assert answer.content_type == "application/pkix-cert"
            assert x509.load_der_x509_certificate(await answer.read()) == issuer.certificate
            answer = await client.get(f"/crl/{name}.crl")
            assert answer.content_type == "application/pkix-crl"
            crl = x509.load_der_x509_crl(await answer.read())
            assert crl.is_signature_valid(issuer.certificate.public_key())  # type: ignore[arg-type]
            # Each of the two CAs with subscribers starts with one revoked and one held certificate.
            assert len(list(crl)) == (2 if name in ("public-ca", "gov-ca") else 0)
        answer = await client.get("/crl/nobody.crl")
        assert answer.status == 404
        assert "no authority 'nobody'" in await answer.text()


async def test_a_crl_is_kept_for_seconds_and_then_made_anew(demo_pki: pki.DemoPKI, open_as: OpenPool) -> None:
    """Within two seconds everybody gets the same CRL; later, or when the clock was set back, a new one is signed."""
    point = PublicationPoint(await open_as("lakthan_registry"), demo_pki.authorities)
    first = await point.crl("root", NOW)
    assert await point.crl("root", NOW + timedelta(seconds=1)) == first
    assert await point.crl("root", NOW + timedelta(seconds=3)) != first
    assert await point.crl("root", NOW - timedelta(hours=1)) != first


async def test_tokens_are_made_once_and_again_when_they_are_good_no_more(
    demo_pki: pki.DemoPKI, open_as: OpenPool, database_url: str, tmp_path: Path
) -> None:
    """Each of the four works and is for its owner's eyes only; one that was lost or revoked is made anew."""
    pool = await open_as("lakthan_registry")
    await register(pool, demo_pki)
    made = await ensure_tokens(database_url, tmp_path)
    assert made == [f"tokens/{name}.token" for name in ("public-ca", "gov-ca", "registrar", "auditor")]
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in made} == {0o600}
    assert await ensure_tokens(database_url, tmp_path) == []
    reader = CredentialReader(await open_as("lakthan_auditor"))
    found = await reader.find("token", token_sha256((tmp_path / made[0]).read_text().strip()))
    assert found is not None
    assert found.authority_id is not None
    await CredentialAdmin(pool).revoke(found.name, actor="test")
    (tmp_path / "tokens/auditor.token").unlink()
    assert await ensure_tokens(database_url, tmp_path) == [made[0], made[3]]
