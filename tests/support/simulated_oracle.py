"""Who knows the whole history of a simulation and looks at every single answer.

A signed answer is right when it is, octet for octet, what a fresh answer would have said of a status that was on record
late enough. Late enough is:

- the bound: nobody says what was over (its successor's commit confirmed) three seconds before he was asked;
- the notification: after the process was handed a change, it answers by it;
- the store: a process that does not hear the changes says nothing older than what was on record when it was asked;
- one direction: after an answer was given, nobody who asks later gets an older one;

and it is from a key of that very CA which signs now, not due for renewal when it was asked for, and not ended. What a
fresh answer says is made by the core, from responders of the oracle's own; pyca reads the status, the serial number,
the times and the nonce once more, and checks the signature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509 import OCSPNonce, ocsp

from lakthan.store.feed import BOUND
from lakthan.store.records import AuthorityRecord, StatusRecord
from lakthan_ocsp.directory import Directory, Entitled
from lakthan_ocsp.syntax import OCSPRequest, parse_request
from support.simulated_database import Key, Seen
from support.simulated_responder import World, material, responder

_TRY_LATER = bytes.fromhex("30030a0103")
_SAYS = {"good": ocsp.OCSPCertStatus.GOOD, "revoked": ocsp.OCSPCertStatus.REVOKED}


class Lie(AssertionError):
    """An answer that should never have been given."""


@dataclass
class Asked:
    """A question: about what, when it was sent, when it was taken up, and whether the changes were heard then."""

    encoded: bytes
    keys: list[Key]
    nonce: bytes | None
    sent: float
    wall: datetime
    taken: float = 0.0
    heard: bool = True


@dataclass
class Oracle:
    """Judges answers. `answered`, `refused`, `good`: how many; `floors`: the version of each certificate that was given
    out, and when.
    """

    world: World
    answered: int = 0
    refused: int = 0
    good: int = 0
    given: dict[Key, list[tuple[float, int]]] = field(default_factory=dict)
    handed: dict[Key, list[tuple[float, int]]] = field(default_factory=dict)
    keys: dict[int, list[Seen]] = field(default_factory=dict)
    lies: list[str] = field(default_factory=list)
    _fresh: dict[tuple[int, AuthorityRecord, int], Directory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        feed = self.world.process.real.feed
        on_change, on_many = feed._on_change, feed._on_many_changes

        def change(record: StatusRecord, changed_at: datetime | None) -> None:
            on_change(record, changed_at)
            key = (record.authority_id, record.serial_number)
            self.handed.setdefault(key, []).append((self.world.clock.seconds, record.version))

        def many(authority_id: int, changed_at: datetime | None) -> None:
            on_many(authority_id, changed_at)
            # It says nothing about versions, and everything committed before it was sent is newer than the memory.

        feed._on_change, feed._on_many_changes = change, many
        for authority in material().cas:
            self.keys[authority] = [Seen(0, 0.0)]

    def key_changed(self, authority: int, which: int) -> None:
        """Another key signs from now on."""
        now = self.world.clock.seconds
        self.keys[authority][-1].over = now
        self.keys[authority].append(Seen(which, now))

    def judge(self, asked: Asked, body: bytes) -> None:
        """Look at an answer. What is wrong with it is kept in `lies`."""
        try:
            self._judge(asked, body)
        except Lie as lie:
            self.lies.append(f"{lie}\n  asked at {asked.sent:.4f} about {asked.keys}, answered at {self._now:.4f}")

    @property
    def _now(self) -> float:
        return self.world.clock.seconds

    def _judge(self, asked: Asked, body: bytes) -> None:
        if body == _TRY_LATER:
            self.refused += 1
            return
        response = ocsp.load_der_ocsp_response(body)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise Lie(f"{response.response_status} is no answer to an honest question")
        self.answered += 1
        produced_at = response.produced_at_utc
        request = parse_request(asked.encoded, max_cert_ids=50)
        self._check_times(asked, response, produced_at)
        self._check_foreign(asked, response)
        said = self._what_was_said(asked, request, body, produced_at)
        if said is None:
            raise Lie(self._why_not(asked, request, body, produced_at))
        for key, seen in zip(asked.keys, said, strict=True):
            lowest = min((version for version in seen), default=0)
            self.given.setdefault(key, []).append((self._now, lowest))
        self.good += sum(single.certificate_status is _SAYS["good"] for single in response.responses)

    def _check_times(self, asked: Asked, response: ocsp.OCSPResponse, produced_at: datetime) -> None:
        for single in response.responses:
            end = single.next_update_utc
            if end is None or end <= asked.wall:
                raise Lie(f"nextUpdate {end} was over when the question was asked, {asked.wall}")
        refresh = material().configs[asked.keys[0][0]].refresh or timedelta()
        # Who joins an answer that is being made gets that one.
        if asked.wall - produced_at > refresh + timedelta(seconds=self.world.signing * 8 + 14):
            raise Lie(f"an answer of {produced_at} was due for renewal long before {asked.wall}")

    def _check_foreign(self, asked: Asked, response: ocsp.OCSPResponse) -> None:
        """By pyca alone: about whom, signed by whom, with whose nonce."""
        authority = asked.keys[0][0]
        serials = [single.serial_number for single in response.responses]
        if serials != [int.from_bytes(serial, "big") for _, serial in asked.keys]:
            raise Lie(f"the answer is about {serials}")
        [certificate] = response.certificates
        speakers = {each.certificate for each in material().responders[authority]}
        if certificate not in speakers:
            raise Lie("another CA's responder answered")
        public_key = certificate.public_key()
        assert isinstance(public_key, Ed25519PublicKey)
        try:
            public_key.verify(response.signature, response.tbs_response_bytes)
        except InvalidSignature as error:
            raise Lie("the signature is wrong") from error
        nonces = [each.value.nonce for each in response.extensions if isinstance(each.value, OCSPNonce)]
        if asked.nonce is not None and nonces not in ([asked.nonce], [b"\x04\x10" + asked.nonce]):
            raise Lie(f"the nonce is {nonces}, asked with {asked.nonce!r}")
        if asked.nonce is None and nonces:
            raise Lie("somebody else's nonce")

    def _floor(self, asked: Asked, key: Key) -> int:
        """The oldest version that may still be said."""
        floor = 0
        for instant, version in self.handed.get(key, ()):
            if instant < self._now:
                floor = max(floor, version)
        for instant, version in self.given.get(key, ()):
            if instant < asked.sent:
                floor = max(floor, version)
        if not asked.heard:
            for seen in self.world.tables.history.get(key, ()):
                if seen.visible < asked.taken and seen.value is not None:
                    floor = max(floor, seen.value.version)
        return floor

    def _statuses(self, asked: Asked, key: Key, *, ever: bool = False) -> Iterator[StatusRecord | None]:
        floor, after = self._floor(asked, key), asked.sent - BOUND.total_seconds()
        for seen in self.world.tables.history.get(key, [Seen(None, 0.0)]):
            version = seen.value.version if seen.value is not None else 0
            current = seen.visible <= self._now and (seen.over is None or seen.over > after)
            if ever or (current and version >= floor):
                yield seen.value

    def _what_was_said(
        self, asked: Asked, request: OCSPRequest, body: bytes, produced_at: datetime, *, ever: bool = False
    ) -> list[set[int]] | None:
        """The versions that the answer may stand on, for each certificate; None when there are none."""
        found: list[set[int]] | None = None
        after = -1.0 if ever else asked.sent - BOUND.total_seconds()
        authority_id = asked.keys[0][0]
        speaking = [seen for seen in self.keys[authority_id] if ever or seen.over is None or seen.over >= asked.sent]
        authorities = [
            seen.value
            for seen in self.world.tables.authority_history[authority_id]
            if seen.visible <= self._now and (seen.over is None or seen.over > after)
        ]
        combinations = product(*(list(self._statuses(asked, key, ever=ever)) for key in asked.keys))
        for statuses, authority, key in product(combinations, authorities, speaking):
            if self._fresh_answer(authority, key.value, request, list(statuses), produced_at) == body:
                found = found or [set() for _ in asked.keys]
                for seen, status in zip(found, statuses, strict=True):
                    seen.add(status.version if status is not None else 0)
        return found

    def _fresh_answer(
        self,
        authority: AuthorityRecord,
        which: int,
        request: OCSPRequest,
        statuses: list[StatusRecord | None],
        now: datetime,
    ) -> bytes:
        """What would be signed now of these statuses."""
        directory = self._fresh.get((authority.id, authority, which))
        if directory is None:
            directory = Directory([authority], [responder(authority.id, which)])
            self._fresh[authority.id, authority, which] = directory
        entitled = directory.entitled(request)
        assert isinstance(entitled, Entitled)
        speaker = entitled.responder
        span = speaker.governor.span(now, statuses, authority.crl)
        said: list[Any] = [entitled.statements.of(status, now) for status in statuses]
        draft = speaker.template.draft(
            [
                (cert_id.encoded, each.cert_status, each.single_extensions)
                for cert_id, each in zip(request.cert_ids, said, strict=True)
            ],
            span,
            nonce=request.nonce,
        )
        return draft.seal(speaker.identity.signer._raw_sign(draft.tbs))  # type: ignore[attr-defined]

    def _why_not(self, asked: Asked, request: OCSPRequest, body: bytes, produced_at: datetime) -> str:
        versions = self._what_was_said(asked, request, body, produced_at, ever=True)
        floors = [self._floor(asked, key) for key in asked.keys]
        if versions is None:
            return f"an answer that was never right for anybody, produced at {produced_at}"
        return f"an answer by versions {versions}, at least {floors} were due; heard: {asked.heard}"
