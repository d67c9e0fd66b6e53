"""`./run check` and `./run fix`: is the code as the house wants it?

Each check is a program of its own: foreign tools with their settings in `pyproject.toml`, and ours that find the test
for every requirement (`support.conformance`) and the meaning of every option (`support.configuration`). This module
only runs them all, so that one failure does not hide the next, and prints a line for each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

CHECKS = {
    "style": ["ruff", "check", "--no-fix"],
    "format": ["ruff", "format", "--check"],
    "types": ["mypy", "run", "shared", "services", "tests", "image"],
    "layers": ["lint-imports"],
    # Not by their names on PATH: they are ours.
    "conformance": [sys.executable, "-P", "-m", "support.conformance"],
    "options": [sys.executable, "-P", "-m", "support.configuration"],
    "log events": [sys.executable, "-P", "-m", "support.logged"],
    "image": ["hadolint", "Dockerfile"],
    "manifests": ["yamllint", "--strict", "k8s"],
    "shell": ["shellcheck", ".ci/run", "tests/deploy/enter_root.sh"],
    "lock file": ["uv", "lock", "--check", "--offline"],
}


def check() -> int:
    """Run every check; give the exit code, 1 if one of them failed."""
    failed = []
    for name, command in CHECKS.items():
        cache = os.environ.get("IMPORT_LINTER_CACHE_DIR")
        options = ["--cache-dir", cache] if cache and command[0] == "lint-imports" else []
        started = time.monotonic()
        done = subprocess.run([*command, *options], cwd=CHECKOUT, capture_output=True, text=True, check=False)
        verdict = "FAILED" if done.returncode else "ok"
        print(f"{name:<11} {verdict:<7} {time.monotonic() - started:6.1f} s   {' '.join(command)}", flush=True)
        if done.returncode:
            failed.append(name)
            print(f"{done.stdout}{done.stderr}", flush=True)
    if failed:
        print(f"Not clean: {', '.join(failed)}. ./run fix puts right what a program can.")
    return 1 if failed else 0


def fix() -> int:
    """Let ruff repair and format the code; give the exit code, 1 if something is left for a person."""
    left = subprocess.run(["ruff", "check", "--fix"], cwd=CHECKOUT, check=False).returncode
    formatted = subprocess.run(["ruff", "format"], cwd=CHECKOUT, check=False).returncode
    return 1 if left or formatted else 0


if __name__ == "__main__":
    sys.exit(fix() if sys.argv[1:] == ["--fix"] else check())
