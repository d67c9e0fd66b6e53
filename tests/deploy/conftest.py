"""What the deploy tests share: the image of this checkout, built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.image import Images, temporary_images
from support.programs import need_root


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    """The image of this checkout."""
    need_root()
    with temporary_images() as built:
        yield built
