"""pyHanko, which signs PDFs, asks the running authority for tokens and judges them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from asn1crypto import x509
from pyhanko.sign.timestamps import HTTPTimeStamper
from pyhanko.sign.validation.generic_cms import validate_tst_signed_data
from pyhanko_certvalidator import ValidationContext

from support.tsa import new_unit, running_tsa


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048", "RSA-3072"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
async def test_token(database_url: str, tmp_path: Path, kind: str, hash_name: str) -> None:
    """A token for a document digest is intact, valid, and leads to the root, by what it carries itself.

    TSA-T18, TSA-Q10.
    """
    digest = hashlib.new(hash_name, b"document").digest()
    unit = new_unit(kind)
    async with running_tsa(database_url, tmp_path, unit) as authority:
        stamper = HTTPTimeStamper(authority.url)
        dummy = await stamper.async_dummy_response(hash_name)
        token = await stamper.async_timestamp(digest, hash_name)
    # pyHanko reserves the room for the real token by the size of a first one.
    assert abs(len(token.dump()) - len(dummy.dump())) <= 16
    context = ValidationContext(trust_roots=[x509.Certificate.load(unit.root.der)], allow_fetching=False)
    verdict = await validate_tst_signed_data(token["content"], context, lambda _algorithm: digest)
    assert verdict["intact"]
    assert verdict["valid"]
    assert verdict["trust_problem_indic"] is None
    assert verdict["validation_path"] is not None
