"""The database is lost twice, under load, and brought back: `./run restore-rehearsal`, in small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from deploy.manifests import render_with
from support.archived_postgres import SETTINGS
from support.restore_rehearsal import SURVIVOR, rehearse, show

DOCS = Path(__file__).parents[2] / "docs"
# Half a minute on two cores of its own; CI runs it beside the unit tests.
pytestmark = pytest.mark.timeout(600)


async def test_two_disasters_and_two_restores(tmp_path: Path) -> None:
    """Restored to the end of the archived log, nothing that was acknowledged is missing. Restored to an earlier
    instant, nothing from before it is missing; what came after is named by the audit chain's noted head and by the CA's
    CRL, and a responder that was told of those revocations gives no answer about them until the CRL is imported. No
    serial number of a token comes twice in all of it. TSA-T3.
    """
    outcome = await rehearse(tmp_path, 8)
    show(outcome, Console(width=150))
    assert outcome.faults == []
    whole, earlier = outcome.restored
    assert whole.lost_revocations == []
    assert whole.lost_tokens == []
    assert earlier.heard[SURVIVOR] == {"try_later": len(earlier.lost_revocations)}
    assert earlier.lost_revocations
    assert earlier.lost_tokens


def test_the_backup_of_the_cluster_fits() -> None:
    """The component that archives to an object store can be put beside the database's: the nightly backup is of that
    cluster, and credentials come from a secret.
    """
    rendered = {each["kind"]: each for each in render_with("postgres-cnpg", "postgres-backup")}
    cluster, nightly = rendered["Cluster"], rendered["ScheduledBackup"]
    assert nightly["spec"]["cluster"]["name"] == cluster["metadata"]["name"]
    store = cluster["spec"]["backup"]["barmanObjectStore"]
    assert {each["name"] for each in store["s3Credentials"].values()} == {"lakthan-db-backup"}
    assert cluster["spec"]["postgresql"]["synchronous"]["dataDurability"] == "required"


def test_the_settings_are_those_of_the_manual() -> None:
    """What the rehearsal sets up is what docs/disaster-recovery.md tells operators to set."""
    told = dict(
        re.findall(r"^(\w+) = '?([^'#\n]*?)'? *(?:#.*)?$", (DOCS / "disaster-recovery.md").read_text(), re.MULTILINE)
    )
    assert SETTINGS.items() <= told.items()
