"""Profiles: the kinds of tokens that are given, and the units that give them.

A profile lists units in order. For every single token the first one is taken that is in force at its genTime and not
frozen, so a successor is put beside its predecessor long before it is needed, and nobody has to be there at the hour:
behind it, to take over when the predecessor's key ends; before it, to take over as soon as it begins itself. A unit
with a key list is several units of one name, the newest first.

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
from lakthan_tsa.unit import check_algorithm, check_unit, longest_signature

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime, timedelta

    from lakthan.identity import Identity
    from lakthan_tsa.unit import UsagePeriod


@dataclass(slots=True, eq=False)
class Unit:
    """One time-stamping unit. `name`: in the configuration. `tsu`: in the records, the SHA-256 of its certificate in
    hexadecimal, which names one certificate for ever, as a subject does not. A `frozen` one stamps no more. `listed`:
    when its key list lets it.
    """

    name: str
    identity: Identity
    usage: UsagePeriod
    tsu: str
    frozen: bool = False
    listed: UsagePeriod | None = None

    @classmethod
    def of(cls, name: str, identity: Identity) -> Unit:
        """The unit of this identity. Raises `ConfigError` when its certificate (RFC 3161 §2.3) or its key's signatures
        are not fit for one.
        """
        check_algorithm(identity.view, identity.signer.algorithm)
        tsu = HashAlgorithm.SHA_256.digest(identity.view.encoded).hex()
        return cls(name, identity, check_unit(identity.view), tsu)

    def may_stamp(self, instant: datetime) -> bool:
        """True when its key may sign a token of this instant."""
        return not self.frozen and self.usage.covers(instant) and (self.listed is None or self.listed.covers(instant))


@dataclass(slots=True, eq=False)
class Profile:
    """One kind of token. `policy` is its dotted OID, `accuracy` what it claims; `offered_policies` and `hashes` are
    what `parse_request` asks for; `stampers` are its units in order, each with the template of its tokens here, which
    `template` makes; `unit_names` are their names in the configuration, each of which may stand for several.
    """

    name: str
    policy: str
    accuracy: timedelta
    offered_policies: frozenset[bytes]
    hashes: Mapping[bytes, HashAlgorithm]
    stampers: tuple[tuple[Unit, TokenTemplate], ...]
    template: Callable[[Unit], TokenTemplate]
    unit_names: tuple[str, ...]
    require_nonce: bool = False

    def use_units(self, name: str, units: Sequence[Unit]) -> None:
        """Let these units stamp, in this order, in the place of those of that name, if it has one here."""
        templates = dict(self.stampers)
        before = {each: [unit for unit in templates if unit.name == each] for each in self.unit_names}
        self.stampers = tuple(
            (unit, templates.get(unit) or self.template(unit))
            for each in self.unit_names
            for unit in (units if each == name else before[each])
        )

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
            (
                template.longest_token(longest_signature(unit.identity.signer.public_key))
                for unit, template in self.stampers
            ),
            default=0,
        )
