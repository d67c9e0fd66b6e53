"""Profiles: the kinds of tokens that are given, and the units that give them.

A profile lists units in order. For every single token the first one is taken that is in force at its genTime and not
frozen, so a successor is put beside its predecessor long before it is needed, and nobody has to be there at the hour:
behind it, to take over when the predecessor's key ends; before it, to take over as soon as it begins itself.

Promises: the size of a profile's tokens with certificates never exceeds `token_octets`.

Refuses to know: the clock, the key's work, the store, and who asks.

Lives by: RFC 3161 §2.4.2 (the policy), ETSI EN 319 421 TIS-7.6.7-06 (no token after the key's end), TIS-8.2-01 (a unit
of qualified tokens gives no others), EN 319 422 §5.2.2 and §9.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.algorithms import HashAlgorithm
from lakthan_tsa.authority import TokenTemplate
from lakthan_tsa.unit import check_unit, longest_signature

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from lakthan.identity import Identity
    from lakthan_tsa.unit import UsagePeriod


@dataclass(slots=True, eq=False)
class Unit:
    """One time-stamping unit. `name`: in the configuration. `tsu`: in the records, the SHA-256 of its certificate in
    hexadecimal, which names one certificate for ever, as a subject does not. A `frozen` one stamps no more.
    """

    name: str
    identity: Identity
    usage: UsagePeriod
    tsu: str
    frozen: bool = False

    @classmethod
    def of(cls, name: str, identity: Identity) -> Unit:
        """The unit of this identity. Raises `ConfigError` when its certificate is not fit for one (RFC 3161 §2.3)."""
        tsu = HashAlgorithm.SHA_256.digest(identity.view.encoded).hex()
        return cls(name, identity, check_unit(identity.view), tsu)

    def may_stamp(self, instant: datetime) -> bool:
        """True when its key may sign a token of this instant."""
        return not self.frozen and self.usage.covers(instant)


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """One kind of token. `policy` is its dotted OID, `accuracy` what it claims; `offered_policies` and `hashes` are
    what `parse_request` asks for; `stampers` are its units in order, each with the template of its tokens here.
    """

    name: str
    policy: str
    accuracy: timedelta
    offered_policies: frozenset[bytes]
    hashes: Mapping[bytes, HashAlgorithm]
    stampers: tuple[tuple[Unit, TokenTemplate], ...]
    require_nonce: bool = False

    def stamper(self, instant: datetime) -> tuple[Unit, TokenTemplate] | None:
        """The unit that stamps at this instant, with its template; None when none may."""
        for stamper in self.stampers:
            if stamper[0].may_stamp(instant):
                return stamper
        return None

    @property
    def token_octets(self) -> int:
        """The longest token with certificates that any of its units gives (see `TokenTemplate.longest_token`)."""
        return max(
            template.longest_token(longest_signature(unit.identity.signer.public_key))
            for unit, template in self.stampers
        )
