"""Leaving: what a process does between being asked to stop and closing anything.

First it stays as it is for a while, except that `/readyz` says that it leaves, so that load balancers look elsewhere.
Then its clients are let go: every answer is the last of its connection.

It is the process's, not a service's, as the signal is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakthan.web.front import Front


@dataclass
class Leaving:
    """`asked` turns true once and never back; `fronts` are the public ports that are open."""

    asked: bool = False
    fronts: set[Front] = field(default_factory=set)

    @property
    def problem(self) -> str:
        """For /readyz."""
        return "this process has been asked to stop" if self.asked else ""

    async def leave(self, linger_seconds: float) -> None:
        """Return when the clients have gone, or have been silent for long enough."""
        self.asked = True
        await asyncio.sleep(linger_seconds)
        await asyncio.gather(*(front.leave() for front in list(self.fronts)))


this_process = Leaving()
