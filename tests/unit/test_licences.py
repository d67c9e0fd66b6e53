"""Nobody gets a licence that he was not told about."""

from __future__ import annotations

from support.licences import ALLOWED, PAGE, licence, page, parts, shipped


def test_the_page_is_current() -> None:
    """docs/licences.md lists what uv.lock ships (python -m support.licences --write makes it anew)."""
    assert PAGE.read_text("utf-8") == page()


def test_every_licence_is_allowed() -> None:
    """Each shipped distribution has a licence, and it is one of a few."""
    said = {name: licence(name) for name in shipped()}
    assert len(said) > 25
    assert all(expression is None or parts(expression) <= ALLOWED for expression in said.values()), said
