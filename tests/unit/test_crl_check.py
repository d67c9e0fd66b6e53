"""Which CRLs are believed: signatures of every kind, and the rules on numbers, instants and drops."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.store.bulk import CRLPlan, CRLScope
from lakthan.store.records import AuthorityRecord
from lakthan_registry.crl_check import (
    CRLRefused,
    Names,
    check_drop,
    check_form,
    check_freshness,
    check_succession,
    find_issuer,
)
from lakthan_registry.crl_syntax import CRL, read_crl
from support.crl import Listed, entry, extension, new_crl, pyca_crl
from support.pki import KEY_KINDS, Issued, new_ca

CA = new_ca("Checks")
_NOW = datetime(2026, 6, 1, tzinfo=UTC)


def _authority(*certificates: Issued, name: str = "CA") -> AuthorityRecord:
    views = [CertificateView.of(each.certificate) for each in certificates]
    return AuthorityRecord(
        1,
        name,
        tuple(view.subject for view in views),
        tuple(view.public_key for view in views),
        tuple(each.der for each in certificates),
    )


def _verdict(error: pytest.ExceptionInfo[CRLRefused]) -> str:
    return error.value.verdict.label


@pytest.mark.parametrize("kind", [*KEY_KINDS, "ML-DSA-65"])
def test_every_kind_of_key_that_signs_crls(kind: str) -> None:
    """RSA, P-256, P-384, Ed25519 and ML-DSA-65: the right key is found, and an altered CRL is refused."""
    ca = new_ca("Kinds", kind=kind)
    digest = None if kind in ("Ed25519", "ML-DSA-65") else hashes.SHA384() if kind == "P-384" else hashes.SHA256()
    data = pyca_crl(ca, digest=digest)
    names = Names([_authority(ca)])
    assert find_issuer(read_crl(data), names).name == "CA"
    altered = data.replace(der.encode(der.INTEGER, der.integer_content(4711)), der.encode(der.INTEGER, b"\x12\x68"))
    assert altered != data
    with pytest.raises(CRLRefused, match="does not verify") as error:
        find_issuer(read_crl(altered), names)
    assert _verdict(error) == "signature"


def test_rsa_pss() -> None:
    """RSASSA-PSS with its parameters, as the AlgorithmIdentifier tells them."""
    ca = new_ca("PSS", kind="RSA-2048")
    assert find_issuer(read_crl(pyca_crl(ca, pss=True, digest=hashes.SHA256())), Names([_authority(ca)])).id == 1


def test_the_right_key_among_several() -> None:
    """After a key rollover the old key's CRLs still count; so do two authorities that share their Name."""
    old, new, other = new_ca("Twice"), new_ca("Twice"), new_ca("Twice")
    names = Names([_authority(other, name="other"), _authority(new, old, name="mine")])
    assert find_issuer(read_crl(new_crl(old, Listed())), names).name == "mine"
    assert find_issuer(read_crl(new_crl(other, Listed())), names).name == "other"


def test_a_stranger_and_a_wrong_kind_of_key() -> None:
    """An issuer that is not on record is unknown; one of the name but another kind of key did not sign."""
    names = Names([_authority(new_ca("Checks", kind="Ed25519"))])
    with pytest.raises(CRLRefused, match="no authority on record") as error:
        find_issuer(read_crl(new_crl(new_ca("Stranger"), Listed())), names)
    assert _verdict(error) == "unknown_issuer"
    with pytest.raises(CRLRefused) as error:
        find_issuer(read_crl(new_crl(CA, Listed())), names)
    assert _verdict(error) == "signature"


def test_sha1_and_unknown_algorithms_are_refused() -> None:
    """SHA-1 can be forged; an algorithm that nobody here knows cannot be judged."""
    good = new_crl(CA, Listed())
    names = Names([_authority(CA)])
    for oid in ("1.2.840.10045.4.1", "1.2.3.4.5.6.7"):
        algorithm = der.sequence(der.object_identifier(oid))
        crl = replace(read_crl(good), signature_algorithm=algorithm)
        with pytest.raises(CRLRefused) as error:
            find_issuer(crl, names)
        assert _verdict(error) == "algorithm"


@pytest.mark.parametrize(
    ("listed", "verdict"),
    [
        (Listed(more=[extension("1.2.3.4", b"\x05\x00", critical=True)]), "critical_extension"),
        (Listed(scope=der.sequence(der.encode(0x85, b"\xff"))), "attribute_certificates"),
        (Listed(scope=der.sequence(der.encode(0x81, b"\xff"), der.encode(0x82, b"\xff"))), "scope"),
        (Listed(scope=der.sequence()), "scope"),
        (Listed(number=None, base=1), "malformed"),
        (Listed(number=1, base=2), "malformed"),
    ],
)
def test_what_a_crl_is_about(listed: Listed, verdict: str) -> None:
    """What cannot be imported, or contradicts itself, is refused."""
    with pytest.raises(CRLRefused) as error:
        check_form(read_crl(new_crl(CA, listed)))
    assert _verdict(error) == verdict


def test_a_crl_is_in_force_from_this_update_until_next_update() -> None:
    """Not a second before, not at its end; and one without an end or with its ends crossed never is."""
    crl = _crl(this_update=_NOW, next_update=_NOW + timedelta(days=1))
    check_freshness(crl, _NOW)
    check_freshness(crl, _NOW + timedelta(days=1, seconds=-1))
    for when, verdict in ((_NOW - timedelta(seconds=1), "future"), (_NOW + timedelta(days=1), "expired")):
        with pytest.raises(CRLRefused) as error:
            check_freshness(crl, when)
        assert _verdict(error) == verdict
    for wrong, verdict in (
        (replace(crl, next_update=None), "no_next_update"),
        (replace(crl, next_update=_NOW), "malformed"),
    ):
        with pytest.raises(CRLRefused) as error:
            check_freshness(wrong, _NOW)
        assert _verdict(error) == verdict


def _crl(**changes: object) -> CRL:
    facts = {"number": 10, "base": None, "this_update": _NOW, "next_update": _NOW + timedelta(days=7)}
    return read_crl(new_crl(CA, Listed([entry(b"\x01")], **{**facts, **changes})))  # type: ignore[arg-type]


_CURRENT = CRLScope(10, 10, _NOW - timedelta(days=1), _NOW, bytes(32), complete_entries=100)


@pytest.mark.parametrize(
    ("crl", "current", "verdict"),
    [
        (_crl(number=11), _CURRENT, None),
        (_crl(number=11, base=10), _CURRENT, None),
        (_crl(number=11, base=3), _CURRENT, None),
        (_crl(number=10), replace(_CURRENT, complete_number=9), None),  # the complete CRL issued with the delta
        (_crl(number=None), replace(_CURRENT, crl_number=None, complete_number=None), None),
        (_crl(number=9), None, None),
        (_crl(number=9), _CURRENT, "older_number"),
        (_crl(number=None), _CURRENT, "older_number"),
        (_crl(number=10), _CURRENT, "number_reused"),
        (_crl(number=10, base=9), replace(_CURRENT, complete_number=9), "number_reused"),
        (_crl(number=11, this_update=_NOW - timedelta(days=2)), _CURRENT, "older_this_update"),
        (_crl(number=11, base=10), None, "delta_without_base"),
        (_crl(number=11, base=10), replace(_CURRENT, crl_number=None, complete_number=None), "delta_without_base"),
        (_crl(number=12, base=11), _CURRENT, "delta_base_ahead"),
    ],
)
def test_a_crl_goes_on_from_the_one_on_record(crl: CRL, current: CRLScope | None, verdict: str | None) -> None:
    """Numbers grow, instants do not go back, a delta CRL starts from what is on record (RFC 5280 §5.2.3 and §5.2.4)."""
    if verdict is None:
        check_succession(crl, current)
        return
    with pytest.raises(CRLRefused) as error:
        check_succession(crl, current)
    assert _verdict(error) == verdict


def test_a_large_drop_in_entries_needs_force() -> None:
    """Ten of a hundred entries may go at ten per cent, eleven may not; entries of expired certificates always may."""
    plan = CRLPlan(entries=90, revoked=0, held=0, released=0, reason_changed=0, vanished=10)
    check_drop(plan, _CURRENT, 10)
    check_drop(replace(plan, entries=50, vanished=10), _CURRENT, 10)  # forty of them have expired
    check_drop(replace(plan, entries=0, vanished=100), None, 10)
    with pytest.raises(CRLRefused, match="--force") as error:
        check_drop(replace(plan, entries=89, vanished=11), _CURRENT, 10)
    assert _verdict(error) == "dropped_entries"
