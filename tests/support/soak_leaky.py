"""A responder that keeps something of every answer for ever: what a soak must find. `python -m support.soak_leaky`."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from lakthan_ocsp import __main__ as ocsp
from lakthan_ocsp.service import OCSPService

_OCTETS = 512 << 10
_kept: list[bytes] = []
_draft = OCSPService._draft


def draft_and_keep(self: OCSPService, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the original's
    """Memory with every answer, a descriptor with every tenth."""
    _kept.append(b"x" * _OCTETS)
    if len(_kept) % 10 == 0:
        os.dup(2)
    return _draft(self, *args, **kwargs)


if __name__ == "__main__":
    with patch.object(OCSPService, "_draft", draft_and_keep):
        ocsp.main()
