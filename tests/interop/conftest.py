"""The demo that the foreign judges share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.demo import Demo, on_free_ports, running


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A running demo. Tests take timestamps and ask for status; none of them changes what is on record or stops it."""
    with running(tmp_path_factory.mktemp("interop") / "demo", *on_free_ports()) as demo:
        yield demo
