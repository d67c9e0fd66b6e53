"""One request on its way through the registry, as the edge hands it to what does the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    import msgspec

    from lakthan_registry.api import Route
    from lakthan_registry.identity import Caller

    Handler = Callable[["Call"], Awaitable[msgspec.Struct | dict[str, Any] | None]]


@dataclass(slots=True)
class Call:
    """One request on its way. `caller` is None for what everybody may ask; `body` is decoded, or the open CRL."""

    route: Route
    now: datetime
    parameters: Mapping[str, str]
    query: Any = None
    caller: Caller | None = None
    body: Any = None
    raw: bytes = b""
    key: str = ""

    @property
    def known_caller(self) -> Caller:
        """The caller, where the route demands one."""
        if self.caller is None:
            raise TypeError(f"{self.route.operation} is open to everybody")
        return self.caller
