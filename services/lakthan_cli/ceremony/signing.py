"""The act itself: a programme and two keys in, signed and verified octets out. Nothing is written here.

Promises: every signature is verified by other code (`verification`) with the certificate that will be on record, before
it is given out; the answers and the ARL agree. One that does not ends the ceremony with nothing made.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan import der
from lakthan.identity import Identity
from lakthan_cli.ceremony import arl
from lakthan_cli.ceremony.programme import status_of
from lakthan_cli.ceremony.verification import CeremonyRefused, check_together, read_answer, read_arl
from lakthan_cli.ocsp.certificate import Certificate
from lakthan_ocsp import responder
from lakthan_ocsp.governor import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lakthan.certificates import CertificateView
    from lakthan_cli.ceremony.programme import PlannedAnswer, Programme
    from lakthan_cli.ceremony.verification import ARL, StaticAnswer
    from lakthan_ocsp.responder import ResponderTemplate


@dataclass(frozen=True, slots=True)
class Signed:
    """What a ceremony gives: the answers by the names of their files, and the ARL."""

    answers: Mapping[str, StaticAnswer]
    arl: ARL


async def sign(programme: Programme, *, advance: Callable[[], None], step: Callable[[str], None]) -> Signed:
    """Sign everything. `advance` is called after each signature, `step` with a line for the protocol.

    Raises `ConfigError` when a key cannot be opened or is not that of its certificate, `SignerUnusable`, and
    `CeremonyRefused` when something that was signed does not verify.
    """
    plan = programme.plan
    issuers = [Certificate.from_der(plan.root_view.encoded)]
    async with AsyncExitStack() as stack:
        root = await Identity.open(plan.root.certificate, plan.root.key)
        stack.push_async_callback(root.signer.aclose)
        step(f"The key of {root.view.name} was opened; a test signature verifies with its certificate.")
        speaker = root
        if plan.responder is not None:
            speaker = await Identity.open(plan.responder.certificate, plan.responder.key)
            stack.push_async_callback(speaker.signer.aclose)
            step(f"The key of {speaker.view.name} was opened; a test signature verifies with its certificate.")
        # A CA that answers itself is known to whoever asks; a responder's certificate has to travel along.
        template = responder.ResponderTemplate(speaker, with_certificate=speaker is not root)
        answers: dict[str, StaticAnswer] = {}
        for planned in programme.answers:
            encoded = await _sign_answer(planned, plan.root_view, template, speaker)
            answers[planned.file_name] = _verified(planned, encoded, issuers)
            advance()
            await asyncio.sleep(0)
        step(f"{len(answers)} answers were signed and verified.")
        algorithm = root.signer.algorithm.algorithm_identifier
        tbs = arl.draft(programme, algorithm)
        signed_arl = read_arl(arl.seal(tbs, algorithm, await root.signer.sign(tbs)), issuers)
        advance()
        step(f"The ARL number {signed_arl.number} with {len(signed_arl.entries)} entries was signed and verified.")
    step("The keys were closed.")
    check_together(answers.values(), signed_arl)
    return Signed(answers, signed_arl)


async def _sign_answer(
    planned: PlannedAnswer, root: CertificateView, template: ResponderTemplate, speaker: Identity
) -> bytes:
    sub_ca, period = planned.sub_ca, planned.period
    status = responder.GOOD
    if sub_ca.revocation_time is not None:
        status = responder.revoked(sub_ca.revocation_time, sub_ca.revocation_reason)
    span = Span(planned.produced_at, period.this_update, period.next_update, period.next_update)
    draft = template.draft([(_cert_id(planned, root), status, b"")], span)
    return draft.seal(await speaker.signer.sign(draft.tbs))


def _cert_id(planned: PlannedAnswer, root: CertificateView) -> bytes:
    """RFC 6960 §4.1.1. With NULL parameters, as nearly every client writes them: one that compares the octets with its
    own request finds them the same.
    """
    algorithm = planned.hash_algorithm
    return der.sequence(
        algorithm.algorithm_identifier_with_null,
        der.octet_string(algorithm.digest(root.subject)),
        der.octet_string(algorithm.digest(root.public_key)),
        der.encode(der.INTEGER, planned.sub_ca.serial_number),
    )


def _verified(planned: PlannedAnswer, encoded: bytes, issuers: list[Certificate]) -> StaticAnswer:
    """The answer as it is read back; it must say what was planned, no more and no less."""
    answer = read_answer(encoded, issuers)
    said = (
        answer.serial_number,
        answer.hash_algorithm,
        answer.cert_status,
        answer.revocation_time,
        answer.revocation_reason,
        answer.this_update,
        answer.next_update,
    )
    sub_ca, period = planned.sub_ca, planned.period
    if said != (
        sub_ca.serial_number,
        planned.hash_algorithm,
        status_of(sub_ca),
        sub_ca.revocation_time,
        sub_ca.revocation_reason,
        period.this_update,
        period.next_update,
    ):
        raise CeremonyRefused(f"what was signed about {sub_ca.name} is not what was planned: a defect, or the key's")
    return answer
