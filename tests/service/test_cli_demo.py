"""`lakthan demo` as its users see it: from the first start to Ctrl-C, and after every kind of death."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from support.demo import Demo, lakthan, running, started
from support.programs import need


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A running demo that no test stops."""
    with running(tmp_path_factory.mktemp("demo") / "demo") as demo:
        yield demo


def ask(demo: Demo, issuer: str, certificate: str) -> str:
    """What `openssl ocsp`, called as the demo proposes, prints about a certificate."""
    done = subprocess.run(
        [
            need("openssl"), "ocsp", "-issuer", demo.pki / issuer, "-cert", demo.pki / certificate,
            "-url", demo.urls["ocsp"], "-CAfile", demo.pki / "root.pem",
        ],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return done.stdout + done.stderr


def children_of(pid: int) -> set[int]:
    """The processes whose parent is `pid`."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [(text.split(" ", 1)[0], text.rpartition(")")[2].split()) for text in stats]
    return {int(number) for number, rest in fields if int(rest[1]) == pid}


@pytest.mark.parametrize(
    ("issuer", "certificate", "expected"),
    [
        ("ca.pem", "good.pem", "good"),
        ("ca.pem", "revoked.pem", "revoked"),
        ("ca.pem", "held.pem", "revoked"),
        ("ca.pem", "unissued.pem", "unknown"),
        ("ca.pem", "expired.pem", "good"),
        ("gov/ca.pem", "gov/good.pem", "good"),
        ("gov/ca.pem", "gov/revoked.pem", "revoked"),
        ("root.pem", "ca.pem", "good"),
        ("tsa-chain.pem", "tsu.pem", "good"),
    ],
)
def test_openssl_learns_the_status_that_the_file_name_promises(
    demo: Demo, issuer: str, certificate: str, expected: str
) -> None:
    """Every file behaves as it is called, at every authority, and OpenSSL trusts the answer."""
    said = ask(demo, issuer, certificate)
    assert "Response verify OK" in said
    assert f"{certificate}: {expected}" in said


def test_the_printed_commands_work_as_they_stand(demo: Demo) -> None:
    """Whoever copies the commands from the terminal sees what the table says: good, revoked, verified."""
    need("openssl")
    need("curl")
    lines = [line.strip() for line in demo.printed.splitlines()]
    commands = [line for line in lines if line.startswith(("openssl ", "curl ", sys.executable))]
    assert len(commands) == 9
    printed = ""
    for command in commands:
        done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True, timeout=60)  # noqa: S602
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed += done.stdout + done.stderr
    assert "good.pem: good" in printed
    assert "is now revoked since" in printed
    assert "Verification: OK" in printed
    assert "spare-1.pem: revoked" in ask(demo, "ca.pem", "spare-1.pem")
    assert "spare-4.pem: revoked" in ask(demo, "ca.pem", "spare-4.pem")


def test_the_doctor_finds_nothing_broken(demo: Demo) -> None:
    """From inside, on the machine of a demo: keys, database, ports, files and URLs are in order, and only the clock of
    this machine is what it is.
    """
    done = lakthan("doctor", "--config", demo.directory / "lakthan.toml", "--json")
    found = json.loads(done.stdout)["findings"]
    assert {each["area"] for each in found} == {"clock", "database", "keys", "ports", "files", "network", "machine"}
    assert [each for each in found if each["grade"] == "failure"] == []
    assert [each for each in found if each["grade"] != "ok" and each["area"] not in ("clock", "machine")] == []
    assert any("answered by a responder of this configuration" in each["said"] for each in found)


def test_the_urls_in_the_certificates_are_alive(demo: Demo) -> None:
    """A validator that follows the URLs of a certificate gets its issuer and a CRL that this issuer signed."""
    certificate = x509.load_pem_x509_certificate((demo.pki / "gov/good.pem").read_bytes())
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    urls = [str(each.access_location.value) for each in access]
    assert urls[0] == demo.urls["ocsp"]
    assert urls[1].startswith(demo.urls["publication"])
    with urllib.request.urlopen(urls[1], timeout=10) as answer:  # noqa: S310 - http, it is asserted above
        issuer = x509.load_der_x509_certificate(answer.read())
    certificate.verify_directly_issued_by(issuer)
    [point] = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    with urllib.request.urlopen(point.full_name[0].value, timeout=10) as answer:  # noqa: S310 - as above
        crl = x509.load_der_x509_crl(answer.read())
    assert crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]


def test_a_second_demo_in_the_same_folder_is_refused(demo: Demo) -> None:
    """The message names the folder and the process, and the first demo goes on."""
    second = demo.lakthan("demo")
    assert second.returncode == 1
    assert f"is running in {demo.directory} already (process {demo.process.pid})" in second.stderr
    assert "good.pem: good" in ask(demo, "ca.pem", "good.pem")


def test_the_configuration_of_the_demo_passes_the_check(demo: Demo) -> None:
    """`lakthan check-config` finds keys, certificates and databases of the running demo in order."""
    checked = lakthan("check-config", demo.directory / "lakthan.toml")
    assert checked.returncode == 0, checked.stderr
    assert re.findall(r"\S+$", checked.stdout, re.MULTILINE) == ["ok"] * 16


@pytest.mark.timeout(400)  # three starts, on whatever machine
def test_stop_and_start_again_keep_everything(tmp_path: Path) -> None:
    """Ctrl-C ends the demo with exit code 0 and leaves no process; after `kill -9` nothing of it lives on either; the
    next start has the same certificates, the same URLs, and what was revoked is revoked.
    """
    with running(tmp_path / "demo") as demo:
        urls, serial = demo.urls, (demo.pki / "good.pem").read_bytes()
        assert demo.lakthan("revoke", demo.pki / "spare-2.pem").returncode == 0
        children = children_of(demo.process.pid)
        assert len(children) >= 2
        assert demo.stop(signal.SIGINT) == 0
        assert not any(Path(f"/proc/{child}").exists() for child in children)
        assert not (demo.directory / "running.json").exists()
        assert "no demo is running" in demo.lakthan("status", demo.pki / "good.pem").stderr
        assert "revision 0009" in demo.lakthan("db", "status").stdout
    with started(tmp_path / "demo") as demo:
        demo.until_ready()
        assert demo.stop(signal.SIGKILL) == -signal.SIGKILL
    with running(tmp_path / "demo") as demo:
        assert (demo.urls, (demo.pki / "good.pem").read_bytes()) == (urls, serial)
        assert "0 new certificates" in demo.told
        assert "spare-2.pem: revoked" in ask(demo, "ca.pem", "spare-2.pem")
        assert demo.stop(signal.SIGTERM) == 0


def test_a_service_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    """Half a demo is worse than none: the demo says which service ended and shows its log, and leaves with 1."""
    with running(tmp_path / "demo") as demo:
        [victim] = [
            child
            for child in children_of(demo.process.pid)
            if b"lakthan_tsa" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        subprocess.run(["kill", "-9", str(victim)], check=True)
        assert demo.process.wait(timeout=30) == 1
        assert "tsa was killed by signal 9" in demo.told
        assert "serving timestamps" in demo.told


def test_a_stop_while_it_starts_is_clean_too(tmp_path: Path) -> None:
    """Impatience before the ready line is answered like Ctrl-C after it, and the next start works."""
    with started(tmp_path / "demo") as demo:
        while "starting PostgreSQL" not in demo.told:
            assert demo.process.poll() is None
        assert demo.stop(signal.SIGINT) == 0
        assert "Traceback" not in demo.told
        assert demo.printed == ""
    with running(tmp_path / "demo") as demo:
        assert "good.pem: good" in ask(demo, "ca.pem", "good.pem")


def test_a_taken_port_that_was_asked_for_is_refused(demo: Demo, tmp_path: Path) -> None:
    """`--ocsp-port` means that port; a taken one is an error, and nothing is made."""
    port = demo.urls["ocsp"].rpartition(":")[2]
    second = lakthan("demo", "--dir", tmp_path / "second", "--ocsp-port", port)
    assert second.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in second.stderr
    assert not (tmp_path / "second/pki").exists()


def test_a_demo_on_a_database_of_ones_own(tmp_path: Path, empty_database_url: str) -> None:
    """With `--database` no PostgreSQL is started, the URL is written nowhere, and the commands take it too."""
    with running(tmp_path / "demo", "--database", empty_database_url) as demo:
        assert not (demo.directory / "postgres").exists()
        assert "good.pem: good" in ask(demo, "ca.pem", "good.pem")
        assert "give the same one with --database" in demo.lakthan("revoke", demo.pki / "spare-1.pem").stderr
        revoked = lakthan("revoke", demo.pki / "spare-1.pem", "--database", empty_database_url)
        assert revoked.returncode == 0, revoked.stderr
        assert "spare-1.pem: revoked" in ask(demo, "ca.pem", "spare-1.pem")
        for path in demo.directory.rglob("*"):
            assert path.is_dir() or empty_database_url.encode() not in path.read_bytes()
