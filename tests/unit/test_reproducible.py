"""The same sources make the same wheel, whoever builds it and when."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def built(sources: Path, into: Path, timezone: str) -> str:
    """Build the wheel from a copy elsewhere; gives its SHA-256."""
    shutil.copytree(ROOT / "shared", sources / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "services", sources / "services", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, sources)
    for path in sources.rglob("*"):
        os.utime(path, (len(timezone) * 1e8, len(timezone) * 1e8))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(into)],
        cwd=sources, check=True, capture_output=True, env={**os.environ, "TZ": timezone},
    )  # fmt: skip
    [wheel] = into.glob("*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_the_wheel_is_the_same(tmp_path: Path) -> None:
    """From two copies, with other dates of files and in another time zone, octet for octet."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    one = built(tmp_path / "here", tmp_path / "one", "UTC")
    other = built(tmp_path / "elsewhere", tmp_path / "other", "Asia/Vientiane")
    assert one == other
