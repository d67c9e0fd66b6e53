"""Our OCSP octets beside those of an independent encoder: they must be the same, octet for octet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from asn1crypto import algos, core, ocsp, x509

from lakthan.config import KeyURI
from lakthan.identity import Identity
from lakthan.store.records import CRLReason
from lakthan_ocsp import responder as core_responder
from lakthan_ocsp.governor import Span
from lakthan_ocsp.responder import ResponderTemplate
from lakthan_ocsp.syntax import OCSPResponseStatus, parse_request
from support.pki import KEY_KINDS, issue, new_ca, new_responder
from support.responder import request_for

THIS_UPDATE = datetime(2026, 11, 22, 10, 0, 1, tzinfo=UTC)
NEXT_UPDATE = THIS_UPDATE + timedelta(days=4)
REVOCATION_TIME = datetime(2025, 2, 28, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize("kind", KEY_KINDS)
@pytest.mark.parametrize("nonce", [None, b"n", bytes(range(32)), bytes(128)])
async def test_a_whole_response(kind: str, nonce: bytes | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A response with every status in it equals what asn1crypto makes of the same values.

    OCSP-10, OCSP-11, OCSP-12, OCSP-25, OCSP-26, OCSP-43, OCSP-52, OCSP-67, OCSP-Q39.
    """
    folder = tmp_path_factory.mktemp("keys")
    ca = new_ca("CA")
    issued = new_responder(ca, kind=kind)
    certificate, key = issued.write(folder, "responder")
    identity = await Identity.open(certificate, KeyURI(f"file:{key.name}", folder))
    request = parse_request(request_for(issue("leaf", ca), ca, nonce=nonce), max_cert_ids=1)
    (cert_id,) = request.cert_ids
    statuses = [
        (core_responder.GOOD, {"good": None}),
        (core_responder.UNKNOWN, {"unknown": None}),
        (core_responder.revoked(REVOCATION_TIME, None), {"revoked": {"revocation_time": REVOCATION_TIME}}),
        (core_responder.revoked(REVOCATION_TIME, 0), {"revoked": {"revocation_time": REVOCATION_TIME}}),
        *(
            (
                core_responder.revoked(REVOCATION_TIME, reason),
                {"revoked": {"revocation_time": REVOCATION_TIME, "revocation_reason": ocsp.CRLReason(int(reason))}},
            )
            for reason in (CRLReason.KEY_COMPROMISE, CRLReason.CERTIFICATE_HOLD, CRLReason.AA_COMPROMISE)
        ),
    ]
    draft = ResponderTemplate(identity).draft(
        [(cert_id.encoded, status, b"") for status, _ in statuses],
        Span(THIS_UPDATE, THIS_UPDATE, NEXT_UPDATE, NEXT_UPDATE),
        nonce=request.nonce,
    )
    signature = await identity.signer.sign(draft.tbs)

    data = {
        "responder_id": ocsp.ResponderId("by_key", issued.certificate.extensions[1].value.digest),
        "produced_at": THIS_UPDATE,
        "responses": [
            {
                "cert_id": ocsp.CertId.load(cert_id.encoded, strict=True),
                "cert_status": ocsp.CertStatus(value),
                "this_update": THIS_UPDATE,
                "next_update": NEXT_UPDATE,
            }
            for _, value in statuses
        ],
    }
    if nonce is not None:
        data["response_extensions"] = [{"extn_id": "nonce", "extn_value": core.OctetString(nonce)}]
    response_data = ocsp.ResponseData(data)
    assert draft.tbs == response_data.dump()
    basic = ocsp.BasicOCSPResponse(
        {
            "tbs_response_data": response_data,
            "signature_algorithm": algos.SignedDigestAlgorithm.load(identity.signer.algorithm.algorithm_identifier),
            "signature": signature,
            "certs": [x509.Certificate.load(issued.der)],
        }
    )
    expected = ocsp.OCSPResponse(
        {"response_status": "successful", "response_bytes": {"response_type": "basic_ocsp_response", "response": basic}}
    )
    assert draft.seal(signature) == expected.dump()


@pytest.mark.parametrize("status", [status for status in OCSPResponseStatus if status])
def test_refusals(status: OCSPResponseStatus) -> None:
    """A refusal is the status and nothing else, and has the RFC's spelling as its label. OCSP-8, OCSP-9."""
    encoded = core_responder.refusal(status)
    response = ocsp.OCSPResponse.load(encoded, strict=True)
    assert response.dump(force=True) == encoded
    assert response["response_status"].native.replace("sign_", "sig").replace("_", "") == status.label.lower()
    assert response["response_bytes"].native is None
