"""`--require`: a test that misses its foreign program is skipped for a contributor, and fails in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

EXAMPLE = """
import pytest
from support.programs import need

def test_judged_by_openssl():
    need("openssl")

def test_for_another_day():
    pytest.skip("not today")
"""


def run_example(folder: Path, *options: str) -> str:
    """Run the example without any program on PATH and give what pytest said."""
    example = folder / "test_example.py"
    example.write_text(EXAMPLE)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", f"--rootdir={folder}"]
    environ = {**os.environ, "PATH": str(folder), "PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": ""}
    # An empty configuration of its own, and /usr/sbin, which `need` also searches, has no openssl.
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    done = subprocess.run(
        [*command, *options, str(example)], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "2 skipped"),
        (("--require=curl",), "2 skipped"),
        (("--require=curl,openssl",), "1 failed, 1 skipped"),
        (("--require=all",), "2 failed"),
        (("--require=opensssl",), "unknown opensssl"),
    ],
    ids=["nothing", "another program", "this program", "all", "a slip"],
)
def test_require(tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    """Only what is required turns a skip into a failure; `all` allows no skip, whatever its reason; a slip is named."""
    assert expected in run_example(tmp_path, *options)
