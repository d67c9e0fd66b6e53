"""The tool that makes docs/conformance.md: what it finds in a small project, and what it refuses to let pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.conformance import CHECKOUT, Conformance, page, survey

REQUIREMENTS = """
[OCSP-1]
source = "RFC 6960 §4.1.1"
text = "first"

[OCSP-2]
source = "BR 4.9.9"
text = "second | with a bar"

[OCSP-Q3]
source = "a client"
text = "third"
applies = "client"
why = "it is theirs"
"""
TEST = '''
"""OCSP-2 in the docstring of a module proves nothing."""


def helper() -> None:
    """OCSP-2 neither."""


{decorator}
def test_it() -> None:
    """OCSP-1."""
    assert True  # {comment}
'''


def project(
    folder: Path, *, code: str = "", comment: str = "OCSP-2", decorator: str = "", other: str = ""
) -> Conformance:
    """A project with three requirements, a code file and a test file, surveyed."""
    for path, text in {
        "docs/requirements/ocsp.toml": REQUIREMENTS,
        "docs/requirements/sections.toml": '"RFC 6960" = "4 4.1 4.1.1-2 A A.1"\n',
        "docs/divergences.md": f"# Divergences\n\nOCSP-1 is only mentioned.\n\n## {other}\n",
        "services/lakthan_ocsp/syntax.py": code,
        "shared/lakthan/store/schema.sql": "-- OCSP-1\n",
        "tests/unit/test_it.py": TEST.format(comment=comment, decorator=decorator),
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return survey(folder)


def test_what_is_cited_by_a_test_is_implemented(tmp_path: Path) -> None:
    """Docstrings and comments count, in code and in tests; each place is shown by name and not by line."""
    code = 'class Reader:\n    def parse(self) -> None:\n        """OCSP-1, RFC 6960 §4.1.1 and §A.1."""\n'
    found = project(tmp_path, code=code)
    first, second, third = found.requirements.values()
    assert found.problems == []
    assert (first.status, second.status, third.status) == ("implemented", "implemented", "not applicable")
    assert first.code == ["lakthan_ocsp.syntax.Reader.parse", "lakthan.store.schema"]
    assert first.tests == second.tests == ["unit/test_it.py::test_it"]
    assert found.summary == "3 requirements: 2 implemented, 0 diverges, 1 not applicable, 0 undecided"


def test_the_page(tmp_path: Path) -> None:
    """Every requirement is a row of the table, whatever is in its text."""
    rows = [line for line in page(project(tmp_path)).splitlines() if line.startswith("| **")]
    assert [row.split("**")[1] for row in rows] == ["OCSP-1", "OCSP-2", "OCSP-Q3"]
    assert "second \\| with a bar | BR 4.9.9 | implemented |" in rows[1]
    assert "not applicable: client, it is theirs" in rows[2]


def test_what_nobody_proves_is_undecided(tmp_path: Path) -> None:
    """A helper, the docstring of a module, and a mere mention of a divergence decide nothing."""
    found = project(tmp_path, comment="nothing")
    assert found.problems == ["1 undecided, no test cites them: OCSP-2"]


def test_a_divergence_decides(tmp_path: Path) -> None:
    """A heading of docs/divergences.md with its name is a decision too."""
    found = project(tmp_path, comment="nothing", other="We do it otherwise (OCSP-2)")
    assert (found.requirements["OCSP-2"].status, found.problems) == ("diverges", [])


@pytest.mark.parametrize("decorator", ['@pytest.mark.skip(reason="later")', "@pytest.mark.xfail"])
def test_a_test_that_never_runs_proves_nothing(tmp_path: Path, decorator: str) -> None:
    """What is always skipped, or expected to fail, is undecided and named."""
    found = project(tmp_path, decorator=decorator)
    assert found.count("undecided") == 2
    assert "tests/unit/test_it.py:11: OCSP-1 is cited by a test that never runs" in found.problems


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("# OCSP-99\n", "there is no requirement OCSP-99"),
        ("# OCSP-Q1\n", "there is no requirement OCSP-Q1"),
        ("# RFC 6960 §4.1.3\n", "RFC 6960 has no §4.1.3"),
        ("# RFC 6960 §4.1 and §9.9.\n", "RFC 6960 has no §9.9"),
        ("# as in RFC 6960\n# §4.7 says\n", "RFC 6960 has no §4.7"),
        ("# RFC 1 §1\n", "the sections of RFC 1 are not in docs/requirements/sections.toml: add them"),
    ],
)
def test_citations_of_what_does_not_exist(tmp_path: Path, code: str, problem: str) -> None:
    """A requirement or a section that nobody wrote is found with its file and line."""
    assert project(tmp_path, code=code).problems == [f"services/lakthan_ocsp/syntax.py:1: {problem}"]


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ("OCSP-7", "docs/divergences.md: there is no requirement OCSP-7"),
        ("OCSP-Q3", "docs/divergences.md: OCSP-Q3 is the business of the client"),
    ],
)
def test_divergences_from_what_does_not_concern_us(tmp_path: Path, other: str, problem: str) -> None:
    """A divergence from nothing, or from what is somebody else's, is a mistake."""
    assert problem in project(tmp_path, other=other).problems


def test_every_rule_and_every_quirk_is_there() -> None:
    """The 96 rules and 56 quirks are numbered without a gap, and each has a source and a text."""
    found = survey(CHECKOUT).requirements
    names = [*(f"OCSP-{number}" for number in range(1, 97)), *(f"OCSP-Q{number}" for number in range(1, 57))]
    assert [name for name in found if name.startswith("OCSP-")] == names
    assert all(each.source and each.text and bool(each.applies) == bool(each.why) for each in found.values())
    assert {each.applies for each in found.values()} == {"", "ca", "client", "operator"}
