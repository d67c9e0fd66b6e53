"""The practice statement beside the code: what it names is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import click

from lakthan_cli.__main__ import main
from lakthan_tsa.syntax import ACCEPTED_HASHES, PKIFailureInfo

DOCS = Path(__file__).resolve().parents[2] / "docs"
POLICY = (DOCS / "tsa-policy.md").read_text(encoding="utf-8")


def test_every_reason_to_refuse_is_told() -> None:
    """The table has each failInfo that the service gives, and no other. One of them is never given."""
    told = set(re.findall(r"^\| `(\w+)` \|", POLICY, re.MULTILINE))
    never = PKIFailureInfo.ADD_INFO_NOT_AVAILABLE
    assert told == {each.label for each in PKIFailureInfo} - {never.label}


def test_the_hash_algorithms_are_those_accepted() -> None:
    """Each that is accepted is named in its row."""
    [row] = re.findall(r"^\| hash algorithms accepted \| (.*?), unless", POLICY, re.MULTILINE)
    assert set(row.split(", ")) == {each.label for each in ACCEPTED_HASHES}


def test_metrics_commands_and_settings_exist() -> None:
    """Whatever stands there as code can be found: metrics, commands, keys of the configuration."""
    metrics = (DOCS / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(lakthan_tsa_\w+)`", POLICY))
    roles = {"lakthan_tsa"}
    assert all(f"`{name}`" in metrics for name in named - roles)
    context = click.Context(main)
    assert isinstance(main, click.Group)
    group = main.get_command(context, "tsa")
    assert isinstance(group, click.Group)
    for command in set(re.findall(r"`lakthan tsa (\w+)", POLICY)):
        assert group.get_command(context, command) is not None, command
    configuration = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for key in (
        "hashes",
        "accuracy",
        "requests_per_second",
        "burst",
        "self_check",
        "recovery",
        "leap_second",
        "qualified",
    ):
        assert f"`{key}" in POLICY
        assert f"`{key}`" in configuration


def test_blanks_are_marked_in_one_way() -> None:
    """An operator who searches for the mark finds every blank; none is left open by mistake."""
    assert POLICY.count("**[OPERATOR") == POLICY.count("]**")
    assert POLICY.count("[OPERATOR") == POLICY.count("**[OPERATOR")
