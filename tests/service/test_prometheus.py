"""A real Prometheus scrapes the demo and all that can run beside it, as docs/metrics.md says."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from support.dashboards import DASHBOARDS
from support.documented import documented_series
from support.prometheus import Prometheus, write_rules
from support.promql import ADDED, asked, matching, plain
from support.scraped import Clients, World, scraped

# Six services and a Prometheus start first.
pytestmark = pytest.mark.timeout(300)
_SUFFIXES = ("_bucket", "_sum", "_count")
# What does not happen here, and why. Each is known to Prometheus all the same, with its type, and has no samples.
_DOES_NOT_HAPPEN = {
    "lakthan_ocsp_key_list_problem": "nobody has a key list",
    "lakthan_publisher_key_list_problem": "as above",
    "lakthan_tsa_key_list_problem": "as above",
    "lakthan_ocsp_published_until_timestamp_seconds": "no ceremony was held",
    "lakthan_ocsp_published_withheld_total": "no published answer is withheld",
    "lakthan_ocsp_validity_policy_violations_total": "no answer breaks its profile",
    "lakthan_publisher_failed_total": "every signature succeeds",
    "lakthan_publisher_key_circuit_open": "the publisher's key is a file",
    "lakthan_publisher_key_signatures_total": "as above",
    "lakthan_publisher_key_signatures_under_way": "as above",
    "lakthan_publisher_key_signatures_waiting": "as above",
    "lakthan_tsa_key_circuit_open": "the authority's keys are files",
    "lakthan_tsa_key_signatures_total": "as above",
    "lakthan_tsa_key_signatures_under_way": "as above",
    "lakthan_tsa_key_signatures_waiting": "as above",
    "lakthan_tsa_ntp_servers": "a demo asks no NTP server",
    "lakthan_registry_client_crl_next_update_timestamp_seconds": "the demo's clients have tokens",
    "lakthan_registry_crl_ocsp_compared_timestamp_seconds": "compared every five minutes; there was no CRL at first",
    "lakthan_registry_crl_ocsp_differences": "as above",
    "lakthan_registry_crl_ocsp_problems": "as above",
    "lakthan_registry_source_crls_refused_total": "no CRL breaks a rule",
    "lakthan_registry_spool_files_total": "there is no spool",
    "lakthan_registry_posted_crls_total": "nobody sends a CRL",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything runs, and was asked a little between scrapes."""
    with scraped(tmp_path_factory.mktemp("scraped"), "1s") as world:
        here = world.prometheus
        here.until(lambda: here.value("count(up == 1)") == 7)
        with Clients(world) as clients:
            clients.misbehave()
            clients.revoke("spare-2")
            for _ in range(3):
                clients.round()
                scraped_at = here.value("max(timestamp(up))")
                here.until(partial(_all_newer, here, scraped_at))
        here.until(lambda: here.value("count(lakthan_registry_crl_fetches_total)"))
        here.until(lambda: here.value("sum(lakthan_probe_rounds_total)"))
        yield world


def _all_newer(here: Prometheus, scraped_at: float) -> bool:
    return here.value("min(timestamp(up))") > scraped_at


def test_every_target_is_up(world: World) -> None:
    """All seven are scraped without an error, in OpenMetrics; nobody else is."""
    targets = world.prometheus.api("targets")["activeTargets"]
    assert [each["lastError"] for each in targets] == [""] * 7
    assert {each["labels"]["job"] for each in targets} == {
        f"lakthan-{service}" for service in ("ocsp", "tsa", "registry", "publisher", "probe")
    }


def test_every_documented_series_arrived(world: World) -> None:
    """What docs/metrics.md lists is what Prometheus got: names, types, labels; and nothing else that is ours."""
    documented = documented_series()
    known = {
        each["metric"]: each["type"]
        for each in world.prometheus.api("targets/metadata")
        if each["metric"].startswith("lakthan_")
    }
    # In OpenMetrics a counter's own name is without _total.
    assert known == {
        name.removesuffix("_total") if series.kind == "counter" else name: series.kind
        for name, series in documented.items()
    }
    arrived: dict[str, set[str]] = {}
    for labels in world.prometheus.api("series", **{"match[]": '{__name__=~"lakthan_.+"}'}):
        name = labels["__name__"]
        if documented.get(name) is None and not name.startswith(("lakthan_ocsp:", "lakthan_tsa:")):
            name = next(name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix))
        arrived.setdefault(name, set()).update(labels.keys() - ADDED | ({"worker"} & labels.keys()))
    recorded = {name for name in arrived if ":" in name}
    assert recorded, "the recording rules were evaluated"
    assert documented.keys() - (arrived.keys() - recorded) == set(_DOES_NOT_HAPPEN)
    for name in arrived.keys() - recorded:
        assert arrived[name] - {"worker"} == documented[name].labels - {"worker"}, name


def test_rules_are_loaded(world: World) -> None:
    """Every rule of the component was evaluated without an error."""
    groups = world.prometheus.api("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 40
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_every_panel_shows_something(world: World) -> None:
    """Prometheus takes every expression of every dashboard; all that read series which are there give a line."""
    names = {
        name for name in world.prometheus.api("label/__name__/values") if name.startswith(("lakthan_", "process_"))
    }
    # A rate needs two scrapes of a series that has just appeared.
    deadline = time.monotonic() + 60
    while (seen := _shown(world, names))[0] and time.monotonic() < deadline:
        time.sleep(1)
    empty, drawn = seen
    assert empty == []
    assert drawn > sum(len(panel.queries) for dashboard in DASHBOARDS for panel in dashboard.panels) * 0.7


def _shown(world: World, names: set[str]) -> tuple[list[tuple[str, str]], int]:
    """The panels with an expression that gives no line although its series are there, and how many give one."""
    empty, drawn = [], 0
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                now = time.time()
                lines = world.prometheus.history(plain(query.promql), now - 30, now, 5)
                there = all(
                    any(re.fullmatch(name, each) for each in names) for name, _ in asked(query.promql).selectors
                )
                # A comparison leaves out what is as it should be.
                if there and not lines and not re.search(r" (==|>) ", query.promql):
                    empty.append((dashboard.uid, panel.title))
                drawn += bool(lines)
    return empty, drawn


def test_chosen_by_job_and_instance(world: World) -> None:
    """The lists at the top of each dashboard are not empty: the pattern that fills them finds processes."""
    for dashboard in DASHBOARDS:
        assert world.prometheus.query(f'count by (job, instance) ({{__name__=~"{dashboard.marker}"}})')


def test_two_workers_are_one_target(world: World) -> None:
    """One scrape of a supervisor has the series of each worker, which can be summed."""
    here = world.prometheus
    assert {each["metric"]["worker"] for each in here.query("lakthan_worker_up == 1")} == {"0", "1"}
    instances = {each["metric"]["instance"] for each in here.query("lakthan_worker_up")}
    assert len(instances) == 1
    [total] = here.query('sum without (worker) (lakthan_ocsp_nonces_total{worker!=""})')
    assert float(total["value"][1]) == 9


def test_a_slow_request_is_an_exemplar(world: World) -> None:
    """While the store holds an answer up, the histogram shows an example; its id is in the log, without an address."""
    asyncio.run(_held_up(world))
    here = world.prometheus
    begin = time.time() - 60

    def exemplars() -> list[dict[str, object]]:
        found = here.api(
            "query_exemplars", query="lakthan_ocsp_request_seconds_bucket", start=begin, end=time.time() + 1
        )
        return [exemplar for series in found for exemplar in series["exemplars"]]

    here.until(exemplars)
    log = [json.loads(line) for line in (world.demo.directory / "log" / "ocsp.log").read_text().splitlines()]
    slow = {line["request_id"]: line for line in log if line["event"] == "a slow request"}
    for exemplar in exemplars():
        labels = exemplar["labels"]
        assert isinstance(labels, dict)
        assert set(labels) == {"request_id"}
        line = slow[labels["request_id"]]
        assert line["seconds"] == pytest.approx(float(str(exemplar["value"])), abs=1e-5)
        assert line["method"] in {"GET", "POST"}
        assert "127.0.0.1" not in json.dumps(line)


def _ask(world: World) -> None:
    with Clients(world) as clients:
        clients.ask_about_a_new_one()


async def _held_up(world: World) -> None:
    """Ask what must be looked up while the table is locked."""
    connection = await asyncpg.connect(world.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE certificate_status IN ACCESS EXCLUSIVE MODE")
            asking = asyncio.create_task(asyncio.to_thread(_ask, world))
            async with asyncio.timeout(30):
                while not await connection.fetchval(  # noqa: ASYNC110 - it is the database that knows
                    "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = $1::regclass)",
                    "certificate_status",
                ):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # what makes it slow
        await asking
    finally:
        await connection.close()


def test_nothing_is_said_of_an_example_that_is_not_there() -> None:
    """The list of what does not happen here names series that are documented."""
    assert all(matching(name, {each: frozenset() for each in documented_series()}) for name in _DOES_NOT_HAPPEN)


def test_written_down(tmp_path: Path) -> None:
    """The command of docs/metrics.md makes a rules file of the component's."""
    write_rules(tmp_path)
    assert (tmp_path / "lakthan-rules.yml").read_text().startswith("groups:\n")
