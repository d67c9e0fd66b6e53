"""The alert rules: promtool makes each one fire, and keeps it silent when nothing is wrong; each has a runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml

from deploy.manifests import K8S
from lakthan_cli.__main__ import main
from support.documented import documented_series
from support.programs import need
from support.promql import ADDED, asked, matching

_DOCS = K8S.parent / "docs"
_RULES = yaml.safe_load((K8S / "components" / "monitoring" / "rules.yaml").read_text())["spec"]
_ALERTS = {rule["alert"]: rule for group in _RULES["groups"] for rule in group["rules"] if "alert" in rule}
_RECORDS = {rule["record"]: rule for group in _RULES["groups"] for rule in group["rules"] if "record" in rule}
_DAY = 86400


class Case(NamedTuple):
    """Series with values for each minute, promtool's way to write them: `a+bxn` grows by b, n times."""

    firing: dict[str, str]
    silent: dict[str, str]
    at: str = "30m"


def _budget(series: str, answered: str, unanswered: str, at: str, bad: int) -> Case:
    """Of 10,000 requests a minute so many get no answer, or two do."""

    def of(count: int) -> dict[str, str]:
        return {
            f'{series}{{outcome="{answered}"}}': f"0+{10_000 - count}x600",
            f'{series}{{outcome="{unanswered}"}}': f"0+{count}x600",
        }

    return Case(of(bad), of(2), at)


def _gauge(series: str, firing: float, silent: float) -> Case:
    return Case({series: f"{firing}x120"}, {series: f"{silent}x120"}, "90m")


def _grows(series: str) -> Case:
    return Case({series: "0+1x60"}, {series: "5x60"})


def _each_minute(series: str, firing: int, silent: int) -> Case:
    """A counter that grows by so much a minute."""
    return Case({series: f"0+{firing}x60"}, {series: f"0+{silent}x60"})


def _quantile(series: str, slow: str, quick: str) -> Case:
    """A hundred requests a minute, of which ten are slow, or none is."""
    return Case(
        {
            f'{series}{{le="{quick}"}}': "0+90x60",
            f'{series}{{le="{slow}"}}': "0+100x60",
            f'{series}{{le="+Inf"}}': "0+100x60",
        },
        {
            f'{series}{{le="{quick}"}}': "0+100x60",
            f'{series}{{le="{slow}"}}': "0+100x60",
            f'{series}{{le="+Inf"}}': "0+100x60",
        },
    )


def _share(series: str, label: str, *, good: str, bad: str) -> Case:
    """A hundred requests a minute, of which two are bad, or none is."""
    return Case(
        {f'{series}{{{label}="{good}"}}': "0+98x60", f'{series}{{{label}="{bad}"}}': "0+2x60"},
        {f'{series}{{{label}="{good}"}}': "0+98x60", f'{series}{{{label}="{bad}"}}': "0x60"},
    )


_LEADER = 'lakthan_publisher_leader{{authority="a",instance="{}"}}'
_OCSP, _TSA = "lakthan_ocsp_requests_total", "lakthan_tsa_requests_total"
CASES = {
    "OCSPBudgetBurnsFast": _budget(_OCSP, "successful", "tryLater", "65m", 200),
    "OCSPBudgetBurns": _budget(_OCSP, "successful", "internalError", "390m", 80),
    "OCSPAbsent": Case({"up": "1x60"}, {"lakthan_ocsp_feed_trusted": "1x60"}),
    "OCSPFeedLost": _gauge("lakthan_ocsp_feed_trusted", 0, 1),
    "OCSPClockNotBelieved": _gauge("lakthan_ocsp_clock_believed", 0, 1),
    "OCSPRevocationsSlow": _quantile("lakthan_ocsp_revocation_to_served_seconds_bucket", "2.5", "0.05"),
    "OCSPSlow": _quantile("lakthan_ocsp_request_seconds_bucket", "0.5", "0.005"),
    "OCSPResponderCertificateEnds": _gauge(
        'lakthan_ocsp_responder_not_after_timestamp_seconds{authority="a"}', 3 * _DAY, 30 * _DAY
    ),
    "OCSPResponderToBeRenewed": _gauge('lakthan_ocsp_responder_to_be_renewed{authority="a"}', 1, 0),
    "OCSPAuthorityWithoutResponder": _grows('lakthan_ocsp_unauthorized_total{cause="no responder"}'),
    "OCSPPublishedAnswersEnd": _gauge(
        'lakthan_ocsp_published_until_timestamp_seconds{authority="root"}', 7 * _DAY, 60 * _DAY
    ),
    "OCSPEdgeCut": _gauge("lakthan_ocsp_copy_age_seconds", 300, 1),
    "OCSPDatabaseWentBack": _gauge("lakthan_ocsp_contradicted_certificates", 2, 0),
    "OCSPEdgeRefuses": _gauge('lakthan_ocsp_copy_state{state="refusing"}', 1, 0),
    "OCSPNoRoom": _each_minute("lakthan_ocsp_wire_turned_away_total", 60, 3),
    "OCSPMakesRoom": _each_minute("lakthan_ocsp_wire_made_room_total", 600, 30),
    "OCSPSourcesLimited": _each_minute("lakthan_ocsp_wire_limited_total", 600, 30),
    "TSABudgetBurnsFast": _budget(_TSA, "granted", "systemFailure", "65m", 200),
    "TSABudgetBurns": _budget(_TSA, "granted", "timeNotAvailable", "390m", 80),
    "TSASlow": _quantile("lakthan_tsa_request_seconds_bucket", "1.0", "0.005"),
    "TSAAbsent": Case({"up": "1x60"}, {'lakthan_tsa_clock_state{state="in sync"}': "1x60"}),
    "TSAClockOut": _gauge('lakthan_tsa_clock_state{state="out of sync"}', 1, 0),
    "TSAClockSoonOut": _gauge('lakthan_tsa_clock_state{state="soon out of sync"}', 1, 0),
    "TSASelfCheckFailed": _grows("lakthan_tsa_self_check_failures_total"),
    "TSAUnitFrozen": _gauge('lakthan_tsa_unit_frozen{unit="2026"}', 1, 0),
    "TSAKeyEnds": _gauge('lakthan_tsa_key_not_after_timestamp_seconds{unit="2026"}', 10 * _DAY, 90 * _DAY),
    "TSANoRoom": _each_minute("lakthan_tsa_wire_turned_away_total", 60, 3),
    "TSAMakesRoom": _each_minute("lakthan_tsa_wire_made_room_total", 600, 30),
    "TSASourcesLimited": _each_minute("lakthan_tsa_wire_limited_total", 600, 30),
    # Two processes of which one leads; then none, or the other one.
    "PublisherWithoutLeader": Case(
        {_LEADER.format(1): "1x20 0x100", _LEADER.format(2): "0x120"},
        {_LEADER.format(1): "1x20 0x100", _LEADER.format(2): "0x20 1x100"},
        "90m",
    ),
    "PublisherCannotSign": Case(
        {'lakthan_publisher_working{authority="a"}': "0x60", 'lakthan_publisher_leader{authority="a"}': "1x60"},
        {'lakthan_publisher_working{authority="a"}': "0x60", 'lakthan_publisher_leader{authority="a"}': "0x60"},
    ),
    "PublishedAnswerEnds": _gauge(
        'lakthan_publisher_earliest_next_update_timestamp_seconds{authority="a"}', 90 * 60 + 1800, 0
    ),
    "PublisherBehind": _gauge('lakthan_publisher_behind_seconds{authority="a"}', 1200, 400),
    "PublisherShort": _gauge('lakthan_publisher_short{authority="a"}', 1, 0),
    "PublisherResponderCertificateEnds": _gauge(
        'lakthan_publisher_responder_not_after_timestamp_seconds{authority="a"}', 3 * _DAY, 30 * _DAY
    ),
    "KeyCircuitOpen": _gauge('lakthan_tsa_key_circuit_open{key="pkcs11:token=prod"}', 1, 0),
    "KeyListProblem": _gauge('lakthan_ocsp_key_list_problem{authority="a"}', 1, 0),
    "WorkerRestarts": _grows('lakthan_worker_restarts_total{worker="0"}'),
    "RegistryAbsent": Case({"up": "1x60"}, {"lakthan_registry_requests_in_flight": "0x60"}),
    "RegistryFails": _share("lakthan_registry_requests_total", "code", good="200", bad="503"),
    "CRLOverdue": _gauge('lakthan_registry_crl_overdue{authority="a",url="http://a/a.crl"}', 1, 0),
    "CRLAndOCSPDiffer": _gauge('lakthan_registry_crl_ocsp_differences{authority="a",age="alarm"}', 3, 0),
    "SomebodyTriesWhatIsNotHis": _grows('lakthan_registry_refusals_total{problem="wrong-authority"}'),
    "ClientCRLEnds": _gauge(
        'lakthan_registry_client_crl_next_update_timestamp_seconds{issuer="CN=a"}', _DAY / 2, 30 * _DAY
    ),
    "ProbeFails": _gauge('lakthan_probe_success{url="http://ocsp.test",subject="a",check="good"}', 0, 1),
    "ProbeWarns": _gauge('lakthan_probe_warning{url="http://ocsp.test",subject="a",check="speed"}', 1, 0),
    # A minute of the test is a minute of the clock: the last round was at the beginning, or a minute ago.
    "ProbeStands": Case(
        {"lakthan_probe_last_round_timestamp_seconds": "0x60"},
        {"lakthan_probe_last_round_timestamp_seconds": "0+60x60"},
    ),
}


def test_every_alert_has_a_case() -> None:
    """No alert comes without its test."""
    assert sorted(CASES) == sorted(_ALERTS)


@pytest.mark.parametrize("name", sorted(_ALERTS))
def test_fires_and_does_not(name: str, tmp_path: Path) -> None:
    """What is wrong fires exactly this alert; the same series with healthy values fires it not."""
    case = CASES[name]
    judge(name, case, tmp_path)


def test_fires_when_the_publisher_has_gone(tmp_path: Path) -> None:
    """A publisher of which nothing is scraped any more is one without a leader, too; where there was none, nothing is
    missing.
    """
    gone = {_LEADER.format(1): "1x20 stale", _LEADER.format(2): "0x20 stale"}
    judge("PublisherWithoutLeader", Case(gone, {"up": "1x60"}, "60m"), tmp_path)


def judge(name: str, case: Case, folder: Path) -> None:
    """Let promtool evaluate an alert over the series of both halves of a case."""
    # Only what it stands on: to evaluate all the others for hours of minutes takes most of the time.
    rules = [*(_RECORDS[each] for each in re.findall(r"lakthan_\w+:[\w:]+", _ALERTS[name]["expr"])), _ALERTS[name]]
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": rules}]}))
    expression = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    tests = [
        {
            "name": said,
            "interval": "1m",
            "input_series": [{"series": each, "values": values} for each, values in series.items()],
            "promql_expr_test": [{"expr": expression, "eval_time": case.at, "exp_samples": samples}],
        }
        for said, series, samples in (
            ("fires", case.firing, [{"labels": "{}", "value": 1}]),
            ("is silent", case.silent, []),
        )
    ]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "test.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [need("promtool"), "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_rules_are_taken(tmp_path: Path) -> None:
    """Promtool takes the file as a whole, as Prometheus will."""
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(_RULES))
    done = subprocess.run(
        [need("promtool"), "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(_ALERTS) + len(_RECORDS)} rules found" in done.stdout


def test_series_exist() -> None:
    """Every series that a rule reads is one of docs/metrics.md, with the labels that it compares and sums by; a test
    compares that page with the running services.
    """
    labels = {name: series.labels for name, series in documented_series().items()}
    for rule in [*_ALERTS.values(), *_RECORDS.values()]:
        query = asked(rule["expr"])
        there: set[str] = set()
        for name, compared in query.selectors:
            if name in _RECORDS:
                continue
            found = matching(name, labels)
            assert found, name
            assert all(compared <= labels[each] | ADDED for each in found), name
            there.update(*(labels[each] for each in found))
        assert query.grouped <= there | ADDED, rule["expr"]
        said = set(re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", ""))))
        assert said <= there | ADDED, rule["alert"]


@pytest.mark.parametrize("name", sorted(_ALERTS))
def test_has_a_runbook(name: str) -> None:
    """Who is woken finds a heading of the alert's name, with what it means, where to look and what to do."""
    page, _, anchor = _ALERTS[name]["annotations"]["runbook"].partition("#")
    assert anchor == name.lower()
    text = (K8S.parent / page).read_text()
    _, heading, rest = text.partition(f"## {name}\n")
    assert heading, f"{page} has no ## {name}"
    section = rest.split("\n## ")[0]
    assert all(word in section for word in ("**It means**", "**Look**", "**Do**")), name
    assert _ALERTS[name]["labels"]["severity"] in {"page", "ticket"}


def test_commands_of_the_runbooks_exist() -> None:
    """At three in the morning every command that a page names is one that the program has, options included."""
    pages = [path.read_text() for path in (_DOCS / "runbooks").glob("*.md")]
    commands = {each for page in pages for each in re.findall(r"`lakthan ([a-z][^`]*)`", page)}
    assert commands
    for spelled in sorted(commands):
        command: click.Command = main
        words = spelled.split()
        with click.Context(main) as context:
            while isinstance(command, click.Group):
                found = command.get_command(context, words.pop(0))
                assert found is not None, spelled
                command = found
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, spelled
