"""How often one client may ask: a token bucket that is kind to bursts.

Signing tools ask for a hundred tokens within seconds and then for none all day; a client that may ask `per_second` in
the long run may ask for `burst` at once after a pause. What is kept of a client is one instant: when its bucket will be
full again (the "generic cell rate algorithm"), so a million clients cost a million floats, and those with a full bucket
are forgotten.

Refuses to know: the clock, and what a client is.
"""

from __future__ import annotations

_MOST_CLIENTS = 100_000


class Quota:
    """The quota of one profile; every client has a bucket of its own."""

    def __init__(self, per_second: float, burst: int, *, most_clients: int = _MOST_CLIENTS) -> None:
        self._interval_seconds = 1 / per_second
        self._slack_seconds = (burst - 1) * self._interval_seconds
        self._most_clients = most_clients
        self._full_at: dict[str, float] = {}

    def take(self, client: str, now_seconds: float) -> float:
        """0.0 when the client may go on; else the seconds until it may, and nothing is taken.

        `now_seconds` comes from a clock that never goes back.
        """
        full_at = max(self._full_at.get(client, now_seconds), now_seconds)
        wait_seconds = full_at - now_seconds - self._slack_seconds
        if wait_seconds > 0:
            return wait_seconds
        if client not in self._full_at and len(self._full_at) >= self._most_clients:
            self._forget(now_seconds)
        self._full_at[client] = full_at + self._interval_seconds
        return 0.0

    def _forget(self, now_seconds: float) -> None:
        """Drop whoever has a full bucket; if all are in use, the oldest half, who get a fresh bucket for it."""
        self._full_at = {client: full_at for client, full_at in self._full_at.items() if full_at > now_seconds}
        if len(self._full_at) >= self._most_clients:
            self._full_at = dict(list(self._full_at.items())[self._most_clients // 2 :])
