"""`./run` by itself: what it installs is what uv.lock says, and what it says is what helps."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from support.programs import need

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run_script() -> ModuleType:
    """The script as a module; its name has no .py, so the import system has to be told how to read it."""
    loader = importlib.machinery.SourceFileLoader("run_script", str(CHECKOUT / "run"))
    spec = importlib.util.spec_from_loader("run_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start ./run with this Python and give what it said."""
    command = [sys.executable, str(CHECKOUT / "run"), *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def pinned(text: str) -> dict[str, tuple[str, set[str]]]:
    """Read pip requirements: name → (version, hashes), of those whose markers hold here."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            head, *hashes = line.split("--hash=")
            requirement = Requirement(head)
            if requirement.marker is None or requirement.marker.evaluate():
                found[requirement.name] = (str(requirement.specifier), {value.strip() for value in hashes})
    return found


@pytest.mark.parametrize("dev", [False, True], ids=["runtime", "dev"])
def test_pip_gets_what_uv_gets(run_script: ModuleType, *, dev: bool) -> None:
    """The requirements that ./run derives for pip name the packages, versions and hashes that uv itself exports."""
    options = ["--frozen", "--no-emit-project", "--extra=embedded", *(["--group=dev"] if dev else ["--no-dev"])]
    exported = subprocess.run(
        [need("uv"), "export", "--quiet", *options], cwd=CHECKOUT, check=True, capture_output=True, text=True
    ).stdout
    ours = pinned(run_script.requirements("dev" if dev else None))
    assert ours == pinned(exported)
    assert all(hashes for _, hashes in ours.values())


def test_what_builds_the_image(run_script: ModuleType) -> None:
    """`./run requirements build` is what uv exports of that group, and needs no environment; a wrong group is named."""
    options = ["--frozen", "--no-emit-project", "--only-group=build"]
    exported = subprocess.run(
        [need("uv"), "export", "--quiet", *options], cwd=CHECKOUT, check=True, capture_output=True, text=True
    ).stdout
    assert pinned(run("requirements", "build").stdout) == pinned(exported)
    assert pinned(run("requirements").stdout) == pinned(run_script.requirements())
    assert "no group 'biuld'" in run("requirements", "biuld").stderr


def test_uv_is_pinned(run_script: ModuleType) -> None:
    """The uv that pip fetches is one version with hashes, from uv.lock like everything else."""
    assert list(pinned(run_script.requirements(only="uv"))) == ["uv"]


def test_help_lists_every_command() -> None:
    """`./run` alone explains itself."""
    done = run()
    assert done.returncode == 0
    for command in ("demo", "lakthan", "test", "check", "fix", "bench", "fuzz", "endure", "image", "requirements"):
        assert f"\n  {command} " in done.stdout


def test_unknown_command() -> None:
    """A slip of the finger is answered with the list of commands and exit code 2."""
    done = run("tset")
    assert done.returncode == 2
    assert "there is no command 'tset'" in done.stderr
    assert "./run COMMAND" in done.stderr


def test_unknown_installer(tmp_path: Path) -> None:
    """A wrong setting is named, together with what it can be."""
    done = run("test", LAKTHAN_RUN_DIR=str(tmp_path), LAKTHAN_RUN_INSTALLER="conda")
    assert done.returncode == 1
    assert "'conda'" in done.stderr
    assert "uv" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_answer_to_trouble_is_found(run_script: ModuleType) -> None:
    """Words that pip and uv really use for the usual troubles lead to advice; other words lead to none."""
    troubles = {
        "OSError: [Errno 28] No space left on device": "disk is full",
        "Temporary failure in name resolution": "Check the network",
        "error sending request for url (https://example.com/)": "Check the network",
        "invalid peer certificate: UnknownIssuer": "SSL_CERT_FILE",
        "[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate": "SSL_CERT_FILE",
        "THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.": "Do not use it",
        "no such option: --python": "pip is too old",
        "[Errno 30] Read-only file system: '/x'": "LAKTHAN_RUN_DIR",
    }
    for words, advice in troubles.items():
        assert advice in (run_script.explain(words) or ""), words
    assert run_script.explain("SyntaxError: invalid syntax") is None


@pytest.mark.parametrize("minor", [6, 7, 8, 9, 10])
def test_old_python_can_read_it(minor: int) -> None:
    """A Python that is too old for Lakthan can still read the script, and so can say that it is too old."""
    assert ast.parse((CHECKOUT / "run").read_text(), feature_version=(3, minor)).body
