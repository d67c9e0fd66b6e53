"""The threat model names tests, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_named_test_exists() -> None:
    """Each file, and in it each function."""
    named = set(NAMED.findall(PAGE.partition("## Threats")[2]))
    assert len(named) > 40
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert not function or function in tests, f"{file} has no {function}"
        assert any(name.startswith("test_") for name in tests), file


def test_every_threat_has_a_test() -> None:
    """No row of the tables of threats without one."""
    rows = [line for line in PAGE.partition("## Threats")[2].splitlines() if line.startswith("| ")]
    threats = [line for line in rows if not line.startswith(("| threat", "| ---"))]
    assert len(threats) > 25
    assert all(NAMED.search(line.rpartition(" | ")[2]) for line in threats)
