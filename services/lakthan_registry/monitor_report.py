"""A comparison of CRLs with OCSP on paper: Markdown for people, JSON for programs and for the next run to remember."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lakthan.errors import ConfigError
from lakthan_registry.monitor import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lakthan_registry.monitor import Difference, Report
    from lakthan_registry.monitor_ask import Said

Since = dict[str, dict[tuple[str, bytes, Kind], datetime]]


def as_json(reports: Sequence[Report]) -> str:
    """Everything. Instants in ISO 8601, durations in seconds, serial numbers in hexadecimal."""
    return json.dumps({"authorities": [_document(each) for each in reports]}, indent=2, ensure_ascii=False) + "\n"


def _document(report: Report) -> dict[str, Any]:
    return {
        "authority": report.authority,
        "at": report.at.isoformat(timespec="seconds"),
        "in_order": report.in_order,
        "declared_delay_seconds": report.declared_delay.total_seconds(),
        "crls": [
            {
                "source": crl.source,
                "crl_number": crl.number,
                "this_update": crl.this_update.isoformat(),
                "next_update": crl.next_update and crl.next_update.isoformat(),
                "entries": len(crl.entries),
            }
            for crl in report.crls
        ],
        "compared_with_the_store": report.compared,
        "asked": report.asked,
        "alarms": len(report.alarms),
        "pending": len(report.differences) - len(report.alarms),
        "not_listed": report.uncounted,
        "probably_ended": report.ended,
        "problems": report.problems,
        "differences": [
            {
                "where": each.where,
                "serial_number": each.serial_number.hex(),
                "kind": each.kind.name.lower(),
                "crl": words(each.crl),
                "ocsp": words(each.ocsp),
                "since": each.since.isoformat(),
                "alarm": each.alarm,
            }
            for each in report.differences
        ],
        "carried": [
            {"where": where, "serial_number": number.hex(), "kind": kind.name.lower(), "since": since.isoformat()}
            for (where, number, kind), since in report.carried.items()
        ],
    }


def remembered(path: Path) -> Since:
    """What an earlier JSON report knows of the age of differences; nothing when there is none.

    Raises `ConfigError` when the file is something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {
            report["authority"]: {
                (
                    each["where"],
                    bytes.fromhex(each["serial_number"]),
                    Kind[each["kind"].upper()],
                ): datetime.fromisoformat(each["since"])
                for each in (*report["differences"], *report.get("carried", ()))
            }
            for report in document["authorities"]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not an earlier report of this monitor in JSON: name another file") from error


def as_markdown(reports: Sequence[Report]) -> str:
    """For people and for the file."""
    return "\n".join(line for report in reports for line in _page(report))


def _page(report: Report) -> list[str]:
    pending = len(report.differences) - len(report.alarms)
    verdict = "In order" if report.in_order else "Not in order"
    lines = [
        f"# CRL and OCSP of {report.authority}",
        "",
        f"Compared at {_moment(report.at)}. The declared delay is {report.declared_delay}.",
        "",
        f"**{verdict}**: {len(report.alarms)} beyond the declared delay, {pending} within it.",
        "",
        "| CRL | number | thisUpdate | nextUpdate | entries |",
        "| --- | --- | --- | --- | ---: |",
        *(
            f"| {crl.source} | {'' if crl.number is None else crl.number} | {_moment(crl.this_update)} "
            f"| {_moment(crl.next_update)} | {len(crl.entries)} |"
            for crl in report.crls
        ),
        "",
        f"Compared with the store: all {report.compared} entries, and everything revoked there.",
        *(f"Asked {url} about {count} of them." for url, count in report.asked.items()),
        "",
    ]
    if report.ended:
        lines += [f"On no CRL any more, without an end on record, and so probably ended: {report.ended}.", ""]
    for problem in report.problems:
        lines += [f"- could not be compared: {problem}"]
    if report.differences:
        lines += [
            "",
            "| serial number | what | where | CRL | OCSP | since | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_row(each) for each in report.differences),
        ]
    if report.uncounted:
        lines += ["", f"And {report.uncounted} more."]
    return [*lines, ""]


def _row(each: Difference) -> str:
    age = "**alarm**" if each.alarm else "pending"
    return (
        f"| {each.serial_number.hex()} | {each.kind.value} | {each.where} | {words(each.crl)} | {words(each.ocsp)} "
        f"| {_moment(each.since)} | {age} |"
    )


def words(said: Said | None) -> str:
    """What one side says."""
    if said is None:
        return "nothing"
    if said.revocation is None:
        return said.status
    return f"{said.status} {_moment(said.revocation.time)}, {said.revocation.reason.label}"


def _moment(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M:%S} UTC"
