"""The failures that people and programs act on, named by whose turn it is.

Each service turns these into its protocol's own word in its `app` module and nowhere else. A failure that is not
listed here (nor in a service's `syntax`) is a defect: it is logged with its traceback, counted, and answered as
`internalError` (RFC 6960 §4.2.1) or `systemFailure` (RFC 3161 §2.4.2).
"""

from __future__ import annotations


class LakthanError(Exception):
    """Whatever Lakthan itself finds wrong. The message is one plain sentence for the person who reads it."""


class ConfigError(LakthanError):
    """The operator's turn: a setting, file, key or certificate is not as it must be."""


class KeyAway(ConfigError):
    """A key cannot be opened now. Its device or cloud may come back; the configuration may be right as it is."""


class StoreUnavailable(LakthanError):
    """The database's turn: nothing can be read or recorded now. The cause is chained."""


class SignerBusy(LakthanError):
    """The key has as many signatures waiting as it may: come again later."""


class ShareUsedUp(LakthanError):
    """There is not enough for all, and this client's source has had its share: come again later."""


class SignerUnusable(LakthanError):
    """The key did not sign, or what it signed is wrong. Nothing that it made may leave the house."""


class TimeNotAvailable(LakthanError):
    """The clock cannot back an instant now (RFC 3161 §2.4.2, timeNotAvailable)."""
