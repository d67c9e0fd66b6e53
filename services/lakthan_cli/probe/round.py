"""One round over the whole plan.

One place after the other: what is measured is how fast they answer, and not how fast many can be asked at once.
"""

from __future__ import annotations

from datetime import UTC, datetime

from lakthan.errors import ConfigError
from lakthan_cli.ocsp.transport import Transport
from lakthan_cli.probe import ocsp_ask, ocsp_checks, tsa_ask
from lakthan_cli.probe.outcome import Outcome, Report
from lakthan_cli.probe.plan import Authority, Plan, TSAPlan

_ANY_POLICY = "its own policy"


async def go(plan: Plan) -> Outcome:
    """Ask everything once."""
    outcome = Outcome()
    async with Transport.open(plan.limits.timeout.total_seconds()) as transport:
        for authority in plan.authorities:
            for url in authority.urls:
                outcome.add(await _ocsp(url, authority, plan, transport))
        for tsa in plan.tsas:
            for policy in tsa.policies or (None,):
                outcome.add(await _tsa(tsa, policy, plan))
    return outcome


async def _ocsp(url: str, authority: Authority, plan: Plan, transport: Transport) -> Outcome:
    answers = await ocsp_ask.ask_all(url, authority, plan, transport)
    report = Report(url, authority.plan.name, plan.limits, datetime.now(UTC))
    ocsp_checks.judge(authority, answers, report)
    return report.outcome


async def _tsa(tsa: TSAPlan, policy: str | None, plan: Plan) -> Outcome:
    report = Report(tsa.url, policy or _ANY_POLICY, plan.limits, datetime.now(UTC))
    try:
        stamps = await tsa_ask.ask_all(tsa, policy, plan)
    except ConfigError as error:
        report.failure("answers", str(error), "let the probe read it: it is the bearer_file of the plan")
    else:
        tsa_ask.judge(stamps, report)
    return report.outcome
