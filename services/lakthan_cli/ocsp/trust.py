"""Is the issuer itself worth believing: a path of CA certificates from it to an anchor (RFC 5280 §6).

Promises: what is not understood fails. A critical extension that is not checked here (name constraints, policy
constraints) breaks the path instead of being overlooked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from lakthan_cli.ocsp import signature
from lakthan_cli.ocsp.certificate import Certificate, same_name
from lakthan_cli.ocsp.extensions import moment

_LONGEST_PATH = 8
# basicConstraints, keyUsage, extendedKeyUsage, subjectAltName; certificatePolicies have no effect on a path that
# accepts any policy (RFC 5280 §6.1.1).
_HEEDED = frozenset({"2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.32"})


def flaw(authority: Certificate, at: datetime) -> str | None:
    """Why this certificate cannot be a CA's at that time, or None."""
    if not authority.is_ca:
        return f"{authority.name} is not a CA: its basicConstraints does not say so"
    if authority.key_usage is not None and "key_cert_sign" not in authority.key_usage:
        return f"the keyUsage of {authority.name} does not allow it to sign certificates"
    if unheeded := authority.critical - _HEEDED:
        return f"{authority.name} has a critical extension that is not checked here: {', '.join(sorted(unheeded))}"
    return out_of_force(authority, at)


def out_of_force(certificate: Certificate, at: datetime) -> str | None:
    """Why the certificate is not valid at that time, or None."""
    if at < certificate.not_before:
        return f"{certificate.name} is valid only from {moment(certificate.not_before)}"
    if at > certificate.not_after:
        return f"{certificate.name} ended {moment(certificate.not_after)}"
    return None


def path(
    issuer: Certificate, anchors: Sequence[Certificate], others: Sequence[Certificate], at: datetime
) -> tuple[list[Certificate], str | None]:
    """The certificates from the issuer to an anchor, and None; or the longest try, and why it ends there."""
    best: tuple[list[Certificate], str] = ([], "")
    by_encoding = {each.encoded for each in anchors}

    def extend(tried: list[Certificate]) -> list[Certificate] | None:
        nonlocal best
        last = tried[-1]
        trouble = flaw(last, at) or _too_long(tried)
        if trouble is None and last.encoded in by_encoding:
            return tried
        if trouble is None and (weak := signature.weakness(last.public_key, last.signature_algorithm)):
            trouble = f"{last.name} is signed with a broken algorithm: {weak}"
        if trouble is None and len(tried) < _LONGEST_PATH:
            for parent in (*anchors, *others):
                known = any(parent.encoded == each.encoded for each in tried)
                if not known and last.signed_by(parent) and (whole := extend([*tried, parent])):
                    return whole
        if len(tried) > len(best[0]):
            best = (tried, trouble or f"nobody here issued {last.name}, and it is no trust anchor")
        return None

    found = extend([issuer])
    return (found, None) if found else best


def _too_long(tried: list[Certificate]) -> str | None:
    """RFC 5280 §4.2.1.9: how many CAs that are not self-issued may stand below this one."""
    *below, last = tried
    if last.path_length is None:
        return None
    intermediates = sum(1 for each in below if not same_name(each.subject, each.issuer))
    if intermediates > last.path_length:
        return f"{last.name} allows {last.path_length} CAs below it, and there are {intermediates}"
    return None
