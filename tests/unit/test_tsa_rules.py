"""Rules of the time-stamp authority that belong to no single module: digests, sizes, files, and the list of rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import cms

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan_cli.tsa import files
from lakthan_cli.tsa.message import read
from lakthan_tsa.authority import TokenTemplate, draft
from lakthan_tsa.syntax import granted, parse_request
from lakthan_tsa.unit import longest_signature
from support.conformance import CHECKOUT, survey
from support.tsa import POLICY, Unit, new_unit, request_for

NOON = datetime(2026, 4, 14, 12, 0, 0, tzinfo=UTC)
SERIAL_NUMBER = b"\x40" + bytes(17)
SECOND = timedelta(seconds=1)
# The least room that a client keeps for a token: DSS and PDFBox, then iText.
SMALLEST_ROOM_OCTETS = 9472
RULES = {"R": 13, "T": 22, "H": 4, "K": 12, "C": 7, "O": 8, "Q": 20, "V": 16}


async def token(unit: Unit) -> bytes:
    """A token with certificates."""
    identity = unit.identity()
    template = TokenTemplate(identity, policy=POLICY, accuracy=SECOND)
    request = parse_request(request_for(cert_req=True), offered_policies=frozenset({template.policy}))
    made = draft(request, template, serial_number=SERIAL_NUMBER, gen_time=NOON)
    return made.seal(await identity.signer.sign(made.tbs))


def test_every_rule_and_every_quirk_is_there() -> None:
    """The rules are numbered without a gap, and each has a source, a text, and a reason when it is somebody else's."""
    found = survey(CHECKOUT).requirements
    names = [f"TSA-{kind}{number}" for kind, count in RULES.items() for number in range(1, count + 1)]
    assert [name for name in found if name.startswith("TSA-")] == names
    assert all(each.source and each.text and bool(each.applies) == bool(each.why) for each in found.values())


@pytest.mark.parametrize(
    ("kind", "hash_algorithm", "oid"),
    [
        ("P-256", HashAlgorithm.SHA_256, "1.2.840.10045.4.3.2"),
        ("P-384", HashAlgorithm.SHA_384, "1.2.840.10045.4.3.3"),
        ("RSA-3072", HashAlgorithm.SHA_256, "1.2.840.113549.1.1.1"),
        ("ML-DSA-65", HashAlgorithm.SHA_512, "2.16.840.1.101.3.4.3.18"),
    ],
)
async def test_one_digest_throughout(kind: str, hash_algorithm: HashAlgorithm, oid: str) -> None:
    """The digest that SignedData announces is that of the signer, and messageDigest was made with it; ML-DSA has no
    parameters, and RSA is PKCS #1 v1.5 under the name that every reader knows, never PSS.

    TSA-O8, TSA-V14.
    """
    content = cms.ContentInfo.load(await token(new_unit(kind)), strict=True)["content"]
    [signer] = content["signer_infos"]
    assert [each.dump() for each in content["digest_algorithms"]] == [hash_algorithm.algorithm_identifier]
    assert signer["digest_algorithm"].dump() == hash_algorithm.algorithm_identifier
    digest = hash_algorithm.digest(content["encap_content_info"]["content"].contents)
    assert [each["values"][0].native for each in signer["signed_attrs"] if each["type"].native == "message_digest"] == [
        digest
    ]
    parameters = b"\x05\x00" if kind.startswith("RSA") else b""
    assert signer["signature_algorithm"].dump() == der.sequence(der.object_identifier(oid), parameters)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096"])
def test_room_in_a_pdf(kind: str) -> None:
    """The longest token of every usual key fits into the least room that PDF software keeps, with certificates twice as
    long as these to spare.

    TSA-Q11, TSA-Q12.
    """
    unit = new_unit(kind)
    identity = unit.identity()
    template = TokenTemplate(identity, policy=POLICY, accuracy=SECOND, qualified=True)
    longest = template.longest_token(longest_signature(identity.signer.public_key))
    assert longest + len(template.certificates) < SMALLEST_ROOM_OCTETS


async def test_response_and_token_are_different_files(tmp_path: Path) -> None:
    """Of a response (.tsr) the token alone (.tst) can be made, and of that the response again: each reader gets the one
    that it wants.

    TSA-Q19.
    """
    alone = await token(new_unit())
    response = granted(alone)
    assert files.converted(read(response), ".tst") == alone
    assert files.converted(read(alone), ".tsr") == response
