"""On a Debian 12 with nothing but python3 and pip, `./run` works from nothing, and says what to do when it cannot."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from deploy.bare_debian import BareDebian, bare_debian

# Each test may fetch all packages anew, on two busy cores and a slow network.
pytestmark = pytest.mark.timeout(600)

# The smallest thing that needs the environment: all of the shared library's foreign packages come with the command.
SMOKE = ("./run", "lakthan", "--help")


@pytest.fixture(scope="module")
def debian() -> Iterator[BareDebian]:
    """One bare root for the whole module; every test brings its own copy of the checkout."""
    with bare_debian() as root:
        yield root


def expect_smoke(done: subprocess.CompletedProcess[str]) -> None:
    """The command ran and greeted; nothing was left to complain about."""
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
    assert "Traceback" not in done.stderr


def expect_quick_second_start(debian: BareDebian, user: str, folder: str, cache: str) -> None:
    """With the cache mounted read-only, a second start builds nothing, complains of nothing, and is timed (printed)."""
    started = time.monotonic()
    done = debian.run(*SMOKE, user=user, folder=folder, READ_ONLY=cache)
    whole = time.monotonic() - started
    expect_smoke(done)
    assert done.stderr == ""
    python = next((debian.root / cache.lstrip("/")).glob("runtime-*"), None)
    assert python is not None
    inner = f"/{python.relative_to(debian.root)}/bin/python"
    started = time.monotonic()
    debian.run(inner, "-P", "-m", "lakthan_cli", "--help", user=user, folder=folder).check_returncode()
    print(f"second start as {user}: {whole:.2f} s; without ./run: {time.monotonic() - started:.2f} s")


def test_root_starts_from_nothing(debian: BareDebian) -> None:
    """Root gets the command from nothing, and the second start needs no writable place."""
    debian.copy_checkout("/srv/lakthan", "root")
    expect_smoke(debian.run(*SMOKE, folder="/srv/lakthan"))
    expect_quick_second_start(debian, "root", "/srv/lakthan", "/srv/lakthan/.run")


def test_ordinary_user_starts_from_nothing(debian: BareDebian) -> None:
    """An ordinary user gets the command in a checkout of their own."""
    debian.copy_checkout("/home/tester/lakthan", "tester")
    expect_smoke(debian.run(*SMOKE, user="tester", folder="/home/tester/lakthan"))
    expect_quick_second_start(debian, "tester", "/home/tester/lakthan", "/home/tester/lakthan/.run")


def test_checkout_of_somebody_else(debian: BareDebian) -> None:
    """An ordinary user who may only read the checkout gets the environment in their own cache folder."""
    debian.copy_checkout("/opt/lakthan", "root")
    expect_smoke(debian.run(*SMOKE, user="tester", folder="/opt/lakthan"))
    assert not (debian.root / "opt/lakthan/.run").exists()
    cache = next((debian.root / "home/tester/.cache/lakthan").iterdir())
    expect_quick_second_start(debian, "tester", "/opt/lakthan", f"/{cache.relative_to(debian.root)}")


def test_without_uv(debian: BareDebian) -> None:
    """Where uv cannot be had, venv and pip build the same environment from the same lock file."""
    debian.copy_checkout("/srv/without-uv", "root")
    done = debian.run(*SMOKE, folder="/srv/without-uv", LAKTHAN_RUN_INSTALLER="pip")
    expect_smoke(done)
    assert "(venv and pip)" in done.stderr


def test_two_first_starts_at_once(debian: BareDebian) -> None:
    """Two people start at the same moment: one builds, the other waits, and both get what they asked for."""
    debian.copy_checkout("/srv/twice", "root")
    with debian.start(*SMOKE, folder="/srv/twice") as one, debian.start(*SMOKE, folder="/srv/twice") as other:
        said = [process.communicate() for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], said
    assert sum("building the runtime" in stderr for _, stderr in said) == 1
    assert sum("waiting" in stderr for _, stderr in said) == 1


def test_killed_while_building(debian: BareDebian) -> None:
    """A build that is killed leaves nothing that a later start would take for complete."""
    debian.copy_checkout("/srv/killed", "root")
    with debian.start(*SMOKE, folder="/srv/killed") as process:
        assert process.stderr is not None
        assert "building" in process.stderr.readline()
        while not list((debian.root / "srv/killed/.run").glob("runtime-*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
    expect_smoke(debian.run(*SMOKE, folder="/srv/killed"))


@pytest.mark.parametrize(
    ("trouble", "advice"),
    [
        ({"network": "none"}, "Check the network"),
        ({"TINY": "/srv/trouble/.run"}, "Make room"),
        ({"READ_ONLY": "/srv/trouble", "HOME": "/nowhere"}, "Name a folder"),
        ({"PYTHONPATH": "/srv/no-pip"}, "apt install python3-pip"),
    ],
    ids=["no network", "disk full", "no writable place", "no pip"],
)
def test_trouble_is_explained(debian: BareDebian, trouble: dict[str, str], advice: str) -> None:
    """Each usual trouble ends with exit code 1 and a sentence that says what to do, and with no traceback."""
    debian.copy_checkout("/srv/trouble", "root")
    # Found before Debian's pip, and unable to do anything.
    pip = debian.root / "srv/no-pip/pip"
    pip.mkdir(parents=True, exist_ok=True)
    (pip / "__init__.py").write_text("raise ImportError('no pip here')\n")
    user = "tester" if "READ_ONLY" in trouble else "root"
    done = debian.run(*SMOKE, user=user, folder="/srv/trouble", **trouble)
    assert done.returncode == 1
    assert advice in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
