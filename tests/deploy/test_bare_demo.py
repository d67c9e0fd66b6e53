"""The promise of the README, on a bare Debian 12: `./run demo`, and a national PKI answers on localhost.

The demo runs inside the bare root; the questions come from this machine's openssl and curl.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deploy.bare_debian import BareDebian, bare_debian, interrupt
from support.programs import need

pytestmark = pytest.mark.timeout(600)

READY = "lakthan demo ready"


@pytest.mark.parametrize(("user", "folder"), [("root", "/srv/lakthan"), ("tester", "/home/tester/lakthan")])
def test_demo_answers(user: str, folder: str, tmp_path: Path) -> None:
    """From nothing, twice: the demo gets ready, foreign programs accept its answers, and Ctrl-C ends it cleanly."""
    with bare_debian() as debian:
        debian.copy_checkout(folder, user)
        for _ in range(2):
            run_demo_once(debian, user, folder, tmp_path)


def run_demo_once(debian: BareDebian, user: str, folder: str, scratch: Path) -> None:
    """Start the demo (on free ports if the usual ones are taken), ask it, press Ctrl-C."""
    command = ["./run", "demo", "--dir", f"{folder}/demo"]
    with debian.start(*command, user=user, folder=folder) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith(READY):
                break
        else:
            raise AssertionError(said + process.communicate()[1])
        urls = dict(re.findall(r"(\w+)=(http\S+)", line))
        ask_ocsp(debian.root / f"{folder}/demo/pki".lstrip("/"), urls["ocsp"])
        ask_tsa(debian.root / f"{folder}/demo/pki".lstrip("/"), urls["tsa"], scratch)
        interrupt(process)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode in (0, 130), stderr
    assert "Traceback" not in stderr


def ask_ocsp(pki: Path, url: str) -> None:
    """Openssl finds good.pem good, revoked.pem revoked, and unissued.pem anything but good."""
    for name, expected in (("good", r"good\.pem: good"), ("revoked", r"revoked\.pem: revoked"), ("unissued", "")):
        arguments = ["-issuer", "ca.pem", "-cert", f"{name}.pem", "-url", url, "-CAfile", "root.pem"]
        done = subprocess.run(
            [need("openssl"), "ocsp", *arguments], cwd=pki, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        if expected:
            assert "Response verify OK" in said, said
            assert re.search(expected, said), said
        else:
            assert ": good" not in said, said


def ask_tsa(pki: Path, url: str, scratch: Path) -> None:
    """Openssl makes a query, curl carries it, and openssl verifies the token."""
    data, query, reply = scratch / "data", scratch / "query.tsq", scratch / "reply.tsr"
    data.write_text("ຫຼັກຖານ\n")
    openssl = str(need("openssl"))
    subprocess.run([openssl, "ts", "-query", "-data", data, "-sha256", "-cert", "-out", query], check=True)
    media_type = "Content-Type: application/timestamp-query"
    curl = [str(need("curl")), "--silent", "--show-error", "--fail", "-H", media_type, "--data-binary", f"@{query}"]
    subprocess.run([*curl, "-o", reply, url], check=True)
    trust = ["-CAfile", str(pki / "tsa-root.pem"), "-untrusted", str(pki / "tsa-chain.pem")]
    verify = [openssl, "ts", "-verify", "-queryfile", str(query), "-in", str(reply), *trust]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert "Verification: OK" in done.stdout + done.stderr, done.stdout + done.stderr
