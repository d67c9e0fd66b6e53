"""A SoftHSM token of its own for a test: a real PKCS#11 device, in software.

The library reads where its tokens are from the environment once, when it starts, so a process has one folder of tokens;
each test makes its own token in it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lakthan.config import KeyURI
from support.pki import PrivateKey
from support.programs import need

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "123456"


@dataclass(frozen=True)
class Token:
    """A token with its PIN file. `folder`: where the tokens are."""

    label: str
    folder: Path
    home: Path

    def uri(self, label: str, *, pin_source: str = "pin", more: str = "") -> KeyURI:
        """The URI of a key of this token."""
        query = f"module-path={MODULE}&pin-source={pin_source}{more}"
        return KeyURI(f"pkcs11:token={self.label};object={label}?{query}", self.home)

    def put(self, label: str, key: PrivateKey) -> str:
        """Bring a private key, and with it its public half, into the token. Gives their id, in hexadecimal."""
        pem = self.home / f"{label}.key"
        pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        identifier = secrets.token_hex(4)
        self.util("--import", str(pem), "--label", label, "--id", identifier)
        return identifier

    def util(self, *arguments: str) -> str:
        """Run softhsm2-util on this token."""
        return run_util("--token", self.label, "--pin", PIN, *arguments)

    def tool(self, *arguments: str) -> str:
        """Run pkcs11-tool on this token."""
        command = [str(need("pkcs11-tool")), "--module", str(MODULE), "--token-label", self.label, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout


def run_util(*arguments: str) -> str:
    """Run softhsm2-util and give what it prints."""
    return subprocess.run(
        [need("softhsm2-util"), *arguments], check=True, capture_output=True, text=True, env=os.environ
    ).stdout


def tokens_folder(folder: Path) -> Path:
    """Let this process, and what it starts, have its tokens there; once."""
    given = os.environ.get("SOFTHSM2_CONF")
    if given:
        return Path(given).parent / "tokens"
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    return folder / "tokens"


def new_token(folder: Path, home: Path) -> Token:
    """Make a token. `home`: where its PIN file goes and relative paths start."""
    label = f"test-{secrets.token_hex(4)}"
    run_util("--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "87654321")
    (home / "pin").write_text(f"{PIN}\n")
    return Token(label, folder, home)
