"""The vendor's library and the PIN stay out of the process that reads requests: PKCS#11 over a socket, by p11-kit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan.config import KeyURI
from support.pki import new_key
from support.programs import need
from support.sidecar import CLIENT, sidecar
from support.softhsm import Token, new_token, tokens_folder

# What a service does with its key, in a process whose only PKCS#11 library is p11-kit's client.
_SERVICE = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from lakthan.config import KeyURI
    from lakthan.keys import open_signer, prove

    async def main():
        signer = open_signer(KeyURI(sys.argv[1], Path(sys.argv[2])))
        certified = load_pem_public_key(Path(sys.argv[3]).read_bytes())
        await asyncio.gather(*(prove(signer, certified) for _ in range(40)))
        await signer.aclose()
        maps = Path("/proc/self/maps").read_text()
        print("softhsm" in maps, "p11-kit-client" in maps)

    asyncio.run(main())
    """
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has its tokens."""
    need("softhsm2-util")
    return tokens_folder(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def token(tokens: Path, tmp_path: Path) -> Token:
    """A token of its own for one test."""
    return new_token(tokens, tmp_path)


@pytest.mark.parametrize("kind", ["P-256", "RSA-2048"])
def test_a_key_behind_a_socket(kind: str, token: Token, tmp_path: Path) -> None:
    """Forty signatures at once through the side-car are right, and the vendor's library is not in the service."""
    key = new_key(kind)
    token.put("ocsp", key)
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    uri = KeyURI(f"pkcs11:token={token.label};object=ocsp?module-path={CLIENT}&pin-source=pin", tmp_path)
    need("p11-kit")
    with sidecar(token) as address:
        service = subprocess.run(
            [sys.executable, "-c", _SERVICE, uri.uri, str(uri.folder), str(public)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "P11_KIT_SERVER_ADDRESS": address},
        )
    assert service.stdout.strip() == "False True", service.stderr
