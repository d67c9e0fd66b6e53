"""Whether the store can be used, for readiness: a small question every two seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_EVERY_SECONDS = 2.0


class StoreProbe:
    """Asks `ask` again and again, and remembers what is wrong."""

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        self._ask = ask
        self._problem = "not asked yet"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._ask()
            except StoreUnavailable as error:
                self._problem = str(error)
            else:
                self._problem = ""
            await asyncio.sleep(_EVERY_SECONDS)

    def problems(self) -> Mapping[str, str]:
        """For the admin port: the store, and what is wrong with it."""
        return {"store": self._problem}
