"""A token that gives garbage and says that all is well: SoftHSM behind a library that spoils its signatures."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from lakthan.errors import SignerUnusable
from lakthan.keys import open_signer
from lakthan.keys.verification import verify
from support.pki import new_key
from support.programs import need
from support.slow_hsm import SlowHSM
from support.softhsm import new_token, tokens_folder


@pytest.mark.parametrize("kind", ["P-256", "RSA-2048"])
async def test_what_a_token_gives_is_verified(
    kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A signature that the key's public half does not verify never leaves: who asked hears that the key cannot be used,
    and why; when the token is in order again, so are its signatures.
    """
    need("softhsm2-util")
    token = new_token(tokens_folder(tmp_path_factory.mktemp("softhsm")), tmp_path)
    key = new_key(kind)
    token.put("ocsp", key)
    hsm = SlowHSM.build(tmp_path)
    signer = open_signer(hsm.uri(token, "ocsp"))
    hsm.sleep(-2)
    with pytest.raises(SignerUnusable, match="its public key does not verify"):
        await signer.sign(b"ResponseData")
    hsm.sleep(0)
    signature = b""
    async with asyncio.timeout(30):
        while not signature:
            with suppress(SignerUnusable):  # it is left alone for a while
                signature = await signer.sign(b"ResponseData")
            await asyncio.sleep(0.05)
    verify(key.public_key(), signer.algorithm.hash, signature, b"ResponseData")
    await signer.aclose()
