"""Units and profiles from the configuration: what does not go together is refused before anything is served."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from lakthan.config import TSAConfig, TSAProfileConfig, UnitConfig
from lakthan.errors import ConfigError
from lakthan_tsa.opening import make_profiles, open_unit
from lakthan_tsa.profiles import Unit
from support.tsa import new_unit

UNITS = {name: [Unit.of(name, new_unit().identity())] for name in ("one", "two")}
NOWHERE = UnitConfig()  # the units are open already
BOTH = TSAProfileConfig(["one", "two"])


def made(**profiles: TSAProfileConfig) -> list[str]:
    """The names of the profiles that are made of these settings."""
    config = TSAConfig(dict.fromkeys(UNITS, NOWHERE), profiles)
    return [profile.name for profile in make_profiles(config, UNITS)]


def test_what_is_right() -> None:
    """A unit may serve several profiles, and a profile have several units, in its order."""
    assert made(default=BOTH, legacy=TSAProfileConfig(["two"], hashes=["SHA-256"])) == ["default", "legacy"]
    config = TSAConfig(dict.fromkeys(UNITS, NOWHERE), {"default": TSAProfileConfig(["two", "one"])})
    [profile] = make_profiles(config, UNITS)
    assert [unit.name for unit, _ in profile.stampers] == ["two", "one"]


@pytest.mark.parametrize(
    ("profiles", "complaint"),
    [
        ({}, "no profile"),
        ({"default": TSAProfileConfig(["one"])}, "'two' stamps for no profile"),
        ({"default": TSAProfileConfig(["one", "two", "three"])}, "no unit 'three'"),
        ({"a/b": BOTH}, "part of a URL"),
        ({"default": TSAProfileConfig(["one", "two"], policy="best practice")}, "no object identifier"),
        ({"default": TSAProfileConfig(["one", "two"], hashes=["SHA-1"])}, "'SHA-1' cannot be accepted"),
        ({"default": TSAProfileConfig(["one", "two"], accuracy=timedelta(seconds=2))}, "one second"),
        ({"default": TSAProfileConfig(["one", "two"], accuracy=timedelta(microseconds=999))}, "finer than genTime"),
        (
            {"q": TSAProfileConfig(["one", "two"], policy="1.2.3", qualified=True, accuracy=timedelta(seconds=2))},
            "qualified ones",
        ),
        ({"default": TSAProfileConfig(["one", "two"], authentication="required")}, "no credentials file"),
        ({"default": BOTH, "q": TSAProfileConfig(["two"], qualified=True)}, "'two' would give qualified tokens and"),
    ],
)
def test_what_is_refused(profiles: dict[str, TSAProfileConfig], complaint: str) -> None:
    """The message names the profile or the unit, and what to do. TSA-T5, TSA-T12."""
    with pytest.raises(ConfigError, match=complaint):
        made(**profiles)


def test_qualified_on_a_unit_of_its_own() -> None:
    """Qualified tokens beside others are fine when their unit gives no others (EN 319 421 TIS-8.2-01). TSA-T12."""
    profiles = {"default": TSAProfileConfig(["one"]), "q": TSAProfileConfig(["two"], qualified=True)}
    assert made(**profiles) == ["default", "q"]


async def test_an_unfit_unit(tmp_path: Path) -> None:
    """A unit whose certificate is not for time-stamping is not opened. TSA-K8."""
    config = new_unit(extensions=()).write(tmp_path)
    with pytest.raises(ConfigError, match="extendedKeyUsage"):
        await open_unit("main", config)
