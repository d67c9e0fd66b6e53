"""What a service gives to the wire: its short way for requests, and perhaps a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lakthan.web.wire import Connection
    from lakthan.web.wire_heads import Head

# What a `Quick` gives when it will call `Connection.reply` itself.
LATER = b""


class Quick(Protocol):
    """A service's short way: called in the event loop for each complete request that is understood; must not block.

    `post` and `get` give a whole HTTP/1.1 response; or None, and aiohttp answers; or `LATER`, and then
    `Connection.reply` is to be called exactly once, in a later turn of the loop. A raised exception is a defect; it is
    logged and aiohttp answers. What costs time is done when `Connection.may_work` says so, and refused otherwise.
    """

    # A longer body goes to aiohttp, which refuses it in the service's words.
    largest_body: int

    def route(self, head: Head) -> object | None:
        """Called once for each distinct head of a POST. What is given comes back in `post`; None: aiohttp answers."""

    def post(self, route: object, body: bytes, connection: Connection) -> bytes | None:
        """Answer a POST."""

    def get(self, target: bytes, connection: Connection) -> bytes | None:
        """Answer a GET. `target` is as it came, so unless it is known already ask `is_plain_target` first."""


@runtime_checkable
class Remembering(Quick, Protocol):
    """A short way with a memory, which is asked first, also before there is a connection to answer later on.

    A whole response if there is one ready, counted as given; None otherwise, and then nothing has happened, and `post`
    or `get` is asked.
    """

    def known(self, request: bytes) -> bytes | None:
        """For octets that nobody has looked at yet: the response, if they are a whole request that was given to one of
        the next two a short while ago. It leaves at once.
        """

    def ready(self, request: bytes) -> bytes | None:
        """The same for a request that means what such a one meant, and an answer that is made now. It leaves together
        with others.
        """

    def known_post(self, body: bytes, request: bytes = b"") -> bytes | None:
        """For a POST with this body. `request`: all its octets, head and all, where they may be asked for again."""

    def ready_post(self, body: bytes, request: bytes = b"") -> bytes | None:
        """For a POST with this body: an answer that is made now, as by `ready`."""

    def known_get(self, target: bytes, request: bytes = b"") -> bytes | None:
        """For a GET of this target."""
