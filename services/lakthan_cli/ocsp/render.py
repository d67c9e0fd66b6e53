"""Results in words: a table for people, JSON for machines.

Promises: the JSON's keys are always all there (docs/commands.md), and nothing that came from outside reaches a terminal
as a control character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from rich.cells import cell_len

from lakthan_cli.ocsp import extensions, signature
from lakthan_cli.ocsp.certificate import Unreadable, name_text
from lakthan_cli.ocsp.checks import Outcome
from lakthan_cli.ocsp.extensions import moment
from lakthan_cli.ocsp.message import OCSPResponse, SingleResponse
from lakthan_cli.ocsp.query import Result, Verdict
from lakthan_cli.ocsp.tree import Value, hexadecimal

_COLOURS = {Outcome.OK: "green", Outcome.NOTE: "yellow", Outcome.FAILED: "red"}
_VERDICT_COLOURS = {Verdict.GOOD: "green", Verdict.REVOKED: "red"}
# RFC 6960 §2.2: how "never issued" is said where revoked is all that old clients understand.
_NEVER_ISSUED = "the CA never issued it"


def clean(text: str) -> str:
    """Text without what could move a cursor or turn the writing round."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def as_text(result: Result) -> str:
    """One certificate: the verdict, the facts, and a line for each check."""
    lines = [f"{clean(str(result.path))}: {_verdict(result)}", ""]
    facts = _facts(result)
    width = max(len(name) for name, _ in facts)
    lines += [f"  {name.ljust(width)}  {clean(text)}" for name, text in facts]
    if result.verification is not None:
        lines.append("")
        width = max(len(check.name) for check in result.verification.checks)
        for check in result.verification.checks:
            mark = click.style(check.outcome.value.ljust(6), fg=_COLOURS[check.outcome])
            lines.append(f"  {mark}  {check.name.replace('_', ' ').ljust(width)}  {clean(check.why)}")
    return "\n".join(lines)


def as_summary(results: Sequence[Result]) -> str:
    """Several certificates: a line for each."""
    rows = [(clean(str(result.path)), result, clean(_since(result))) for result in results]
    width = max(cell_len(path) for path, _, _ in rows)
    lines = []
    for path, result, since in rows:
        verdict = click.style(result.verdict.label.ljust(12), fg=_VERDICT_COLOURS.get(result.verdict, "yellow"))
        lines.append(f"{path}{' ' * (width - cell_len(path))}  {verdict}  {since}".rstrip())
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Value]:
    """One certificate. `response` is what the answer claims; only `verdict` says what may be believed."""
    certificate, verification = result.certificate, result.verification
    return {
        "certificate": str(result.path),
        "subject": certificate.name,
        "serial_number": hexadecimal(certificate.serial_number),
        "issuer": name_text(certificate.issuer),
        "issuer_from": result.issuer_from,
        "verdict": result.verdict.label,
        "exit_code": result.verdict.exit_code,
        "problem": result.problem,
        "url": result.url,
        "method": result.method,
        "milliseconds": result.milliseconds,
        "response": None if result.response is None else _response_json(result.response, result),
        "checks": []
        if verification is None
        else [{"name": check.name, "outcome": check.outcome.value, "why": check.why} for check in verification.checks],
        "attempts": [{"url": each.url, "problem": each.problem} for each in result.attempts],
    }


def as_tree(tree: Value, indent: int = 0) -> list[str]:
    """A nested message as indented lines."""
    margin = "  " * indent
    lines: list[str] = []
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if isinstance(value, Mapping | list) and value:
                lines += [f"{margin}{name}", *as_tree(value, indent + 1)]
            else:
                lines.append(f"{margin}{name}: {_leaf(value)}")
    elif isinstance(tree, list):
        for number, value in enumerate(tree, 1):
            if isinstance(value, Mapping):
                lines += [f"{margin}{number}.", *as_tree(value, indent + 1)]
            else:
                lines.append(f"{margin}{number}. {_leaf(value)}")
    return lines


def _leaf(value: Value) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(str(value))


def _verdict(result: Result) -> str:
    word = click.style(result.verdict.label, fg=_VERDICT_COLOURS.get(result.verdict, "yellow"), bold=True)
    return f"{word}, {clean(_since(result))}" if _since(result) else word


def _since(result: Result) -> str:
    if result.problem is not None:
        return result.problem
    single = result.verification and result.verification.single
    if not single or single.revocation_time is None:
        return ""
    reason = f", {single.revocation_reason}" if single.revocation_reason else ""
    return f"since {moment(single.revocation_time)}{reason}{f': {_NEVER_ISSUED}' if _never_issued(result) else ''}"


def _never_issued(result: Result) -> bool:
    basic = result.response and result.response.basic
    single = result.verification and result.verification.single
    if not basic or not single or single.revocation_time is None:
        return False
    extended = extensions.find(basic.extensions, extensions.EXTENDED_REVOKE) is not None
    return extended and single.revocation_reason == "certificateHold" and single.revocation_time.timestamp() == 0


def _facts(result: Result) -> list[tuple[str, str]]:
    certificate = result.certificate
    facts = [
        ("certificate", f"{certificate.name}, until {moment(certificate.not_after)}"),
        ("serial number", hexadecimal(certificate.serial_number)),
        ("issuer", name_text(certificate.issuer)),
    ]
    if result.issuer_from is not None:
        facts.append(("issuer found", result.issuer_from))
    facts += [("asked in vain", f"{each.url}: {each.problem}") for each in result.attempts]
    if result.response is not None:
        size = f"{len(result.response.encoded)} octets"
        asked = f"{result.url} by {result.method}, {result.milliseconds:.0f} ms, " if result.milliseconds else ""
        facts.append(("response", f"{asked}{size}"))
    single = result.verification and result.verification.single
    if single:
        if result.verdict is Verdict.NOT_VERIFIED:
            facts.append(("it claims", single.cert_status))
        told = {name: value for name, value in _single_json(single).items() if value is not None}
        facts += [(name.replace("_", " "), str(value)) for name, value in told.items() if name != "cert_status"]
    if result.verification is not None and result.verification.signer is not None:
        signer = result.verification.signer
        facts.append(("signed by", f"{signer.name}, until {moment(signer.not_after)}"))
    return facts


def _response_json(response: OCSPResponse, result: Result) -> dict[str, Value]:
    basic, verification = response.basic, result.verification
    single = verification and verification.single
    signer = verification and verification.signer
    return {
        "octets": len(response.encoded),
        "response_status": response.status,
        "produced_at": None if basic is None else moment(basic.produced_at),
        "signature_algorithm": None if basic is None else _label(basic.signature_algorithm),
        "responder": signer.name if signer else None,
        "responder_not_after": moment(signer.not_after) if signer else None,
        "never_issued": _never_issued(result),
        "single": _single_json(single) if single else None,
    }


def _single_json(single: SingleResponse) -> dict[str, Value]:
    return {
        "cert_status": single.cert_status,
        "revocation_time": None if single.revocation_time is None else moment(single.revocation_time),
        "revocation_reason": single.revocation_reason,
        "invalidity_date": _instant(single, extensions.INVALIDITY_DATE),
        "this_update": moment(single.this_update),
        "next_update": None if single.next_update is None else moment(single.next_update),
        "archive_cutoff": _instant(single, extensions.ARCHIVE_CUTOFF),
    }


def _instant(single: SingleResponse, oid: str) -> str | None:
    found = extensions.find(single.extensions, oid)
    try:
        return None if found is None else moment(extensions.generalized_time(found))
    except Unreadable:
        return None  # the check of the extensions says it


def _label(algorithm: bytes) -> str | None:
    try:
        return signature.label(algorithm)
    except (ValueError, TypeError, KeyError):
        return None  # the check of the algorithm says it
