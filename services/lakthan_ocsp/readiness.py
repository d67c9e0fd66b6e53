"""Whether this process is a good place for requests: whether it can answer truthfully, and not how healthy its
surroundings are (docs/decisions/0022-readiness.md).

From good to bad: changes are heard; they are not, and every answer comes from the store; the store is away, and answers
that were signed before are given, for a while; nothing is left to say but tryLater. Only the last one is a reason to
send requests elsewhere, for elsewhere may do better.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_LOOK_SECONDS = 0.5
# A look-up takes a millisecond; clients do not wait much longer than this.
_PATIENCE_SECONDS = 2.0


class Readiness:
    """What `/readyz` says of the database. `remembered`: how many answers are; `try_store` asks the store something,
    and raises `StoreUnavailable`; `clock_problem`: why nothing may be dated, '' when nothing keeps it.
    """

    def __init__(
        self,
        *,
        changes_heard: Callable[[], bool],
        may_recall: Callable[[], bool],
        remembered: Callable[[], int],
        try_store: Callable[[], Awaitable[object]],
        clock_problem: Callable[[], str] = str,
    ) -> None:
        self._changes_heard = changes_heard
        self._may_recall = may_recall
        self._remembered = remembered
        self._try_store = try_store
        self._clock_problem = clock_problem
        # At the start the feed comes first: who has never heard anything would answer slowly what others know.
        self._problem = "changes have not been heard yet"

    async def watch(self) -> None:
        """Look whether the store answers, as long as nobody says so unasked; until cancelled."""
        heard_once = False
        while True:
            heard_once = heard_once or self._changes_heard()
            if heard_once:
                self._problem = "" if self._changes_heard() else await self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> str:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._try_store()
        except TimeoutError:
            return "the database does not answer"
        except StoreUnavailable as error:
            return str(error)
        return ""

    def checks(self) -> dict[str, str]:
        """See `lakthan.web.admin`."""
        clock_problem = self._clock_problem()
        if clock_problem:
            return {"clock": f"every request gets tryLater: {clock_problem}"}
        if self._changes_heard():
            return {"change feed": ""}
        if not self._problem:
            return {"change feed (changes may be missed: answering from the store only)": ""}
        if self._may_recall() and self._remembered():
            return {"database (away: only what is remembered is answered)": ""}
        return {"database": f"every request gets tryLater: {self._problem}"}
