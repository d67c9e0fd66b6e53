"""The README's tour, run as a reader would: every command, and what it says will be seen."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.programs import need

CHECKOUT = Path(__file__).resolve().parents[2]
README = CHECKOUT / "README.md"
START_SECONDS = 300  # the first start builds an environment


@dataclass(frozen=True)
class Step:
    """A command of the tour and the lines that it is said to print."""

    command: str
    expected: str


def tour() -> list[Step]:
    """Every `$ command` of the ```console blocks, with what stands below it."""
    steps = []
    for block in re.findall(r"^```console\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            steps.append(Step(command, expected))
    return steps


def pattern(expected: str) -> re.Pattern[str]:
    """The expectation as a regular expression: a line of … is any lines, … in a line is any text in it."""
    lines = (
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n" for line in expected.splitlines()
    )
    return re.compile("".join(lines))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that looks like a checkout to its reader, with the demo running in it as the README starts it."""
    (tmp_path / "run").symlink_to(CHECKOUT / "run")
    shutil.copy(README, tmp_path)
    told = tmp_path / "told"
    with (
        told.open("wb") as errors,
        subprocess.Popen(["./run", "demo"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors) as demo,
    ):
        assert demo.stdout is not None
        try:
            printed = b""
            while b"lakthan demo ready" not in printed:
                printed = demo.stdout.readline()
                assert printed, f"the demo did not get ready:\n{told.read_text()}"
            (tmp_path / "ready").write_bytes(printed)
            yield tmp_path
        finally:
            demo.send_signal(signal.SIGINT)
            demo.communicate(timeout=60)
    assert demo.returncode == 0


@pytest.mark.timeout(START_SECONDS + 120)
def test_the_tour(folder: Path) -> None:
    """Every command of the README works as it stands, and prints what the README shows.

    Where the demo had to take other ports, because these are in use on this machine, the commands are adapted.
    """
    for program in ("openssl", "curl"):
        need(program)
    config = tomllib.loads((folder / "demo" / "lakthan.toml").read_text(encoding="utf-8"))
    ports = {
        6960: config["ocsp"]["port"],
        6961: config["ocsp"]["admin_port"],
        3161: config["tsa"]["port"],
        3162: config["tsa"]["admin_port"],
        8443: config["registry"]["port"],
    }
    here = folder
    steps = tour()
    assert len(steps) > 15
    for step in steps:
        if step.command.startswith("cd "):
            here = (here / step.command.removeprefix("cd ")).resolve()
            continue
        command = re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda port: str(ports[int(port[0])]), step.command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=here, capture_output=True, text=True, check=False, timeout=60
        )
        printed = done.stderr + done.stdout
        assert pattern(step.expected).search(printed), f"$ {command}\n{printed}\n--- does not show ---\n{step.expected}"


def test_the_links_lead_somewhere() -> None:
    """Every relative link of the Markdown pages points to a file that exists."""
    pages = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")]
    broken = [
        f"{page.relative_to(CHECKOUT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
