"""What HTTP says around an OCSP answer: how long caches may keep it, and what time it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from lakthan_cli.ocsp.message import SingleResponse
from lakthan_cli.ocsp.transport import Reply
from lakthan_cli.probe.ocsp_ask import Asked
from lakthan_cli.probe.outcome import Report

_SECOND = timedelta(seconds=1)
_VALIDATORS = ("ETag", "Last-Modified", "Expires")


def judge_caching(answers: Sequence[Asked], report: Report) -> None:
    """RFC 9919 §7.2: what binds may be kept, but never beyond its nextUpdate; nothing else may be kept."""
    wrong: list[str] = []
    missing: list[str] = []
    for each in answers:
        if each.reply is None or each.response is None:
            continue
        single = each.verification.single if each.verification is not None else None
        if single is None or single.cert_status == "unknown":
            if _kept_seconds(each.reply) > 0:
                wrong.append(f"{each.way}, {each.expected.value}: caches may keep what binds nobody")
        elif each.echoed:
            if _kept_seconds(each.reply) > 0:
                missing.append(f"{each.way}: caches may keep an answer with somebody's nonce")
        elif each.way.method == "GET":
            wrong += [f"{each.way}: {said}" for said in _kept_too_long(each.reply, single, each.received)]
            missing += [f"{each.way}: {said}" for said in _not_kept(each.reply)]
    if wrong:
        todo = "caches will give wrong answers: look at max_age of the responder, and at the proxy or CDN in front"
        report.failure("caching", f"{len(wrong)} answers are kept too long", todo, [*wrong, *missing])
    elif missing:
        todo = "look what the proxy or CDN in front does to the headers"
        report.warning("caching", f"{len(missing)} remarks on HTTP headers", todo, missing)
    else:
        report.ok("caching", "headers as RFC 9919 §7.2 wants them")


def _kept_too_long(reply: Reply, single: SingleResponse, received: datetime) -> list[str]:
    if single.next_update is None:
        return []
    left_seconds = (single.next_update - received).total_seconds()
    kept_seconds = _kept_seconds(reply) - _age_seconds(reply)
    if kept_seconds <= left_seconds + 1:
        return []
    return [f"caches may keep it for {kept_seconds} s, and it ends in {left_seconds:.0f} s"]


def _not_kept(reply: Reply) -> list[str]:
    if _kept_seconds(reply) == 0:
        return ["no cache may keep it, so every question reaches the responder"]
    return [f"no {name}" for name in _VALIDATORS if name not in reply.headers]


def _kept_seconds(reply: Reply) -> int:
    """For how long a cache between may give it again (RFC 9111 §5.2.2)."""
    pairs = (each.strip().partition("=") for each in reply.headers.get("Cache-Control", "").lower().split(","))
    control = {name: value.strip('"') for name, _, value in pairs}
    if control.keys() & {"no-store", "no-cache", "private"}:
        return 0
    return _number(control.get("s-maxage", "")) or _number(control.get("max-age", ""))


def _age_seconds(reply: Reply) -> int:
    return _number(reply.headers.get("Age", ""))


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,12}", text.strip()) else 0


def skews(answers: Sequence[Asked]) -> dict[str, float]:
    """How far their clocks are ahead of ours, in seconds: by the Date header, by producedAt, and one against the other.

    Of each the one that says most.
    """
    found: dict[str, list[float]] = {"Date": [], "producedAt": [], "producedAt against Date": []}
    for each in answers:
        if each.reply is None:
            continue
        date = _date(each.reply)
        if date is not None:
            found["Date"].append(_outside(date, each.sent, each.received))
        basic = each.response.basic if each.response is not None else None
        if basic is None:
            continue
        produced = _outside(basic.produced_at, each.sent, each.received)
        # With our nonce in it, it was made just now; any other may be an older one, and never one of the future.
        found["producedAt"].append(produced if each.echoed else max(0.0, produced))
        if date is not None and each.echoed:
            found["producedAt against Date"].append((basic.produced_at - date).total_seconds())
    return {what: max(values, key=abs) for what, values in found.items() if values}


def _outside(instant: datetime, since: datetime, until: datetime) -> float:
    """How far an instant, which is cut off to whole seconds, lies outside of a span."""
    if instant > until:
        return (instant - until).total_seconds()
    return min(0.0, (instant + _SECOND - since).total_seconds())


def _date(reply: Reply) -> datetime | None:
    """The Date header, as of now when a cache has kept it since (RFC 9110 §6.6.1, RFC 9111 §5.1)."""
    try:
        return parsedate_to_datetime(reply.headers["Date"]).astimezone(UTC) + _age_seconds(reply) * _SECOND
    except (KeyError, ValueError):
        return None  # no Date, or none that can be read: then it tells nothing
