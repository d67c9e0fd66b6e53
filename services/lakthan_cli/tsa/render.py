"""Results in words: a table for people, JSON for machines.

Promises: the JSON's keys are always all there (docs/commands.md), and nothing that came from outside reaches a terminal
as a control character.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.cells import cell_len

from lakthan_cli.ocsp.checks import Outcome
from lakthan_cli.ocsp.extensions import moment
from lakthan_cli.ocsp.render import clean
from lakthan_cli.ocsp.tree import Value, hexadecimal
from lakthan_cli.tsa.checks import accuracy_words, moment_exactly
from lakthan_cli.tsa.imprint import BY_OID
from lakthan_cli.tsa.stamp import Result, Verdict

_COLOURS = {Outcome.OK: "green", Outcome.NOTE: "yellow", Outcome.FAILED: "red"}
_VERDICT_COLOURS = {Verdict.STAMPED: "green", Verdict.VALID: "green", Verdict.NOT_VALID: "red"}


def as_text(result: Result) -> str:
    """One file: the verdict, the facts, and a line for each check."""
    word = click.style(result.verdict.label, fg=_VERDICT_COLOURS.get(result.verdict, "yellow"), bold=True)
    problem = f", {clean(result.problem)}" if result.problem else ""
    lines = [f"{clean(str(result.path))}: {word}{problem}"]
    facts = _facts(result)
    if facts:
        width = max(len(name) for name, _ in facts)
        lines += ["", *(f"  {name.ljust(width)}  {clean(text)}" for name, text in facts)]
    if result.verification is not None:
        width = max(len(check.name) for check in result.verification.checks)
        lines.append("")
        for check in result.verification.checks:
            mark = click.style(check.outcome.value.ljust(6), fg=_COLOURS[check.outcome])
            lines.append(f"  {mark}  {check.name.replace('_', ' ').ljust(width)}  {clean(check.why)}".rstrip())
    return "\n".join(lines)


def as_summary(results: Sequence[Result]) -> str:
    """Several files: a line for each."""
    rows = [(clean(str(result.path)), result) for result in results]
    width = max(cell_len(path) for path, _ in rows)
    lines = []
    for path, result in rows:
        verdict = click.style(result.verdict.label.ljust(9), fg=_VERDICT_COLOURS.get(result.verdict, "yellow"))
        good = result.verdict.exit_code == 0 and result.token is not None
        told = (
            moment_exactly(result.token.tst_info.gen_time).ljust(24) if good and result.token else result.problem or ""
        )
        kept = f"  {clean(str(result.saved))}" if result.saved is not None else ""
        lines.append(f"{path}{' ' * (width - cell_len(path))}  {verdict}  {clean(told)}{kept}".rstrip())
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Value]:
    """One file. `token` is what the token claims; only `verdict` says what may be believed."""
    response, verification = result.response, result.verification
    return {
        "file": str(result.path),
        "verdict": result.verdict.label,
        "exit_code": result.verdict.exit_code,
        "problem": result.problem,
        "url": result.url,
        "milliseconds": result.milliseconds,
        "tries": result.tries,
        "status": None
        if response is None
        else {
            "status": response.status,
            "status_string": list(response.status_string),
            "fail_info": list(response.fail_info),
        },
        "token": _token_json(result),
        "saved": None if result.saved is None else str(result.saved),
        "checks": []
        if verification is None
        else [{"name": check.name, "outcome": check.outcome.value, "why": check.why} for check in verification.checks],
    }


def _token_json(result: Result) -> dict[str, Value] | None:
    if result.token is None:
        return None
    info, unit = result.token.tst_info, result.verification and result.verification.unit
    algorithm = BY_OID.get(info.message_imprint.hash_algorithm)
    return {
        "octets": len(result.token.encoded),
        "gen_time": moment_exactly(info.gen_time),
        "accuracy_seconds": None if info.accuracy is None else info.accuracy.total_seconds(),
        "serial_number": hexadecimal(info.serial_number),
        "policy": info.policy,
        "hash_algorithm": algorithm.name if algorithm else info.message_imprint.hash_algorithm,
        "hashed_message": info.message_imprint.hashed_message.hex(),
        "unit": unit.name if unit else None,
        "unit_not_after": moment(unit.not_after) if unit else None,
    }


def _facts(result: Result) -> list[tuple[str, str]]:
    facts = []
    if result.token is not None:
        info = result.token.tst_info
        facts = [
            ("genTime", " ".join((moment_exactly(info.gen_time), accuracy_words(info)))),
            ("serial number", hexadecimal(info.serial_number)),
            ("policy", info.policy),
        ]
        if result.verification is not None and result.verification.unit is not None:
            unit = result.verification.unit
            facts.append(("unit", f"{unit.name}, until {moment(unit.not_after)}"))
    if result.milliseconds is not None:
        tries = f", asked {result.tries} times" if result.tries != 1 else ""
        facts.append(("authority", f"{result.url}, {result.milliseconds:.0f} ms{tries}"))
    if result.saved is not None:
        facts.append(("saved", str(result.saved)))
    return facts
