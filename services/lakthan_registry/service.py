"""What each operation of a CA does: a call of a caller who was let in, and the reply.

Rules it lives by:

- A CA is confined twice: here by the credential's one authority, and in the database by row-level security and the
  checks of the functions, as which every statement for a publisher runs (`acting_for`).
- A call changes everything that it asks for or nothing; what it was told to do stands in the audit record with the
  credential's name and the way it came.
- Nothing that the database refuses is explained away: its reason is the client's reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lakthan import der
from lakthan.store.changes import ChangeRefused, ChangeWriter, IdempotencyConflict, NotYourAuthority, StateForbids
from lakthan.store.history import ChangeReader
from lakthan.store.records import Change, Idempotency
from lakthan.telemetry.logs import log
from lakthan_registry import ejbca
from lakthan_registry.crl_check import CRLRefused, Verdict
from lakthan_registry.crl_import import import_crl
from lakthan_registry.messages import (
    Changed,
    ChangeItem,
    CRLImported,
    EJBCAReply,
    Event,
    History,
    SerialNumber,
    Status,
    WhoAmI,
)
from lakthan_registry.openapi import document
from lakthan_registry.problems import FieldError, Problem, not_found
from lakthan_registry.reading import (
    NotTheIssuer,
    check_issuer,
    read_certificate,
    read_changes,
    serial_content,
    serial_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from lakthan.certificates import CertificateView
    from lakthan.store.records import ChangeRequest, CRLReason, StatusRecord
    from lakthan.store.served import Served, ServedWatch
    from lakthan_registry.authorities import Authorities
    from lakthan_registry.calls import Call, Handler
    from lakthan_registry.metrics import RegistryMetrics
    from lakthan_registry.reading import Issuer

SCOPES = {Change.ISSUE: "issue", Change.REVOKE: "revoke", Change.HOLD: "hold", Change.UNHOLD: "hold"}
# Fewer certificates than this are read faster than a thread is found for them.
_READ_AT_ONCE = 16

Way = Literal["acknowledged", "expired trust"]


class PublisherService:
    """The operations of CAs. `publishers` acts as `lakthan_publisher`, `readers` as `lakthan_auditor`."""

    def __init__(
        self,
        publishers: asyncpg.Pool,
        readers: asyncpg.Pool,
        authorities: Authorities,
        watch: ServedWatch,
        metrics: RegistryMetrics,
        *,
        most_changes: int,
    ) -> None:
        self._publishers = publishers
        self._readers = readers
        self._authorities = authorities
        self._watch = watch
        self._metrics = metrics
        self._most_changes = most_changes
        self._document = document()

    def handlers(self) -> Mapping[str, Handler]:
        """What to do, by the operation's name."""
        return {
            "changes": self._changes,
            **dict.fromkeys(("issue", "revoke", "hold", "unhold"), self._single),
            "crls": self._crl,
            "status": self._status,
            "history": self._history,
            "identity": self._identity,
            "ejbca": self._ejbca,
            "ejbca_test": self._identity,
            "openapi": self._openapi,
        }

    async def _changes(self, call: Call) -> Changed:
        items: list[ChangeItem] = call.body.changes
        if len(items) > self._most_changes:
            said = f"{len(items)} changes, and one request may hold {self._most_changes}"
            raise Problem(
                "invalid",
                f"/changes: {said}",
                hint="nothing was changed; send them in several requests",
                errors=[FieldError("/changes", said, "changes")],
            )
        return await self._make(call, items, "/changes")

    async def _single(self, call: Call) -> Changed:
        serial_number = _serial_in_path(call)
        details = {field: getattr(call.body, field) for field in call.body.__struct_fields__}
        item = msgspec.convert({"change": call.route.operation, "serial_number": serial_number} | details, ChangeItem)
        return await self._make(call, [item], "")

    async def _make(self, call: Call, items: list[ChangeItem], prefix: str) -> Changed:
        caller = call.known_caller
        for change in dict.fromkeys(Change(item.change) for item in items):
            caller.demand_scope(SCOPES[change])
        issuer = await self._authorities.issuer(caller.authority_id)
        if len(items) < _READ_AT_ONCE:
            requests = read_changes(items, issuer, call.now, prefix=prefix)
        else:
            requests = await asyncio.to_thread(read_changes, items, issuer, call.now, prefix=prefix)
        versions = await self._record(call, requests, prefix)
        return Changed(max(versions), versions, await self._served(call))

    async def _record(self, call: Call, requests: Sequence[ChangeRequest], prefix: str) -> list[int]:
        """Record all of them or none. Raises `Problem` that names the item."""
        caller = call.known_caller
        writer = ChangeWriter(self._publishers, acting_for=caller.authority_id)
        idempotency = Idempotency(caller.id, call.key, _request_sha256(call)) if call.key else None
        detail = {"operation": call.route.operation, **({"idempotency_key": call.key} if call.key else {})}
        try:
            versions = await writer.record(
                requests, caller.name, through=caller.through, detail=detail, idempotency=idempotency
            )
        except IdempotencyConflict as error:
            raise Problem(
                "idempotency-conflict",
                "this Idempotency-Key came with another request before",
                hint="nothing was changed; every new request needs a new key",
            ) from error
        except ChangeRefused as error:
            raise _refused(error, requests, prefix) from error
        for request in requests:
            self._metrics.changes.labels(request.change.label).inc()
        log.info("changes accepted", operation=call.route.operation, caller=caller.name, last=max(versions, default=0))
        return versions

    async def _served(self, call: Call) -> Way | None:
        """With `?wait=served`: wait until every responder answers by what was just committed."""
        if call.query.wait is msgspec.UNSET:
            return None
        served = await self._watch.wait_until_served()
        self.observe_served(served)
        return _way(served)

    def observe_served(self, served: Served) -> None:
        """Count how long it took until a commit was served."""
        self._metrics.served_seconds.labels(_way(served)).observe(served.seconds)
        self._metrics.responders.set(served.workers)

    async def _crl(self, call: Call) -> CRLImported:
        caller = call.known_caller
        call.body.seek(0, 2)
        if call.body.tell() == 0:
            raise Problem("malformed-request", "the body is empty", hint="send the CRL, DER or PEM, as the body")
        # Not closed by hand: a refusal's traceback may still hold views of it; it goes with the last of them.
        data = mmap.mmap(call.body.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            outcome = await import_crl(
                data,
                pool=self._publishers,
                now=call.now,
                actor=caller.name,
                through=caller.through,
                authority_id=caller.authority_id,
                acting_for=caller.authority_id,
                force=call.query.force == "true",
                detail={"operation": call.route.operation},
            )
        except CRLRefused as error:
            self._metrics.crls.labels(error.verdict.value).inc()
            raise _crl_refused(error) from error
        self._metrics.crls.labels("nothing new" if outcome.nothing_new else "imported").inc()
        return CRLImported(
            authority=await self._authorities.name_of(outcome.authority_id),
            outcome="nothing new" if outcome.nothing_new else "imported",
            crl_number=None if outcome.crl_number is None else str(outcome.crl_number),
            delta=outcome.delta,
            entries=outcome.entries,
            revoked=outcome.revoked,
            held=outcome.held,
            released=outcome.released,
            reason_changed=outcome.reason_changed,
            unchanged=outcome.unchanged,
            vanished=outcome.vanished,
            version=outcome.version,
            served=await self._served(call),
        )

    async def _reader(self, call: Call) -> tuple[ChangeReader, int, str]:
        """What reads for the caller, of which authority, and the authority's name."""
        caller = call.known_caller
        wanted = call.query.authority
        if caller.role != "publisher":
            if wanted is msgspec.UNSET:
                raise Problem(
                    "invalid",
                    "/authority: whose certificate?",
                    hint="add ?authority= and the name of the authority",
                    errors=[FieldError("/authority", "is missing", "authority")],
                )
            record = await self._authorities.named(wanted)
            return ChangeReader(self._readers), record.id, record.name
        name = await self._authorities.name_of(caller.authority_id)
        if wanted is not msgspec.UNSET and wanted != name:
            raise Problem(
                "wrong-authority",
                f"{caller.name} is a credential of {name}, not of {wanted}",
                hint="use a credential of that authority",
            )
        return ChangeReader(self._publishers, acting_for=caller.authority_id), caller.authority_id, name

    async def _status(self, call: Call) -> Status:
        reader, authority_id, name = await self._reader(call)
        serial_number = serial_content(_serial_in_path(call))
        record = await reader.status(authority_id, serial_number)
        if record is None:
            raise _unknown(name, serial_number)
        return _status_of(name, record)

    async def _history(self, call: Call) -> History:
        reader, authority_id, name = await self._reader(call)
        serial_number = serial_content(_serial_in_path(call))
        changes = await reader.history(authority_id, serial_number)
        if not changes:
            raise _unknown(name, serial_number)
        events = [
            Event(
                version=change.version,
                change=change.request.change.value,
                actor=change.actor,
                through=change.through or "",
                recorded_at=change.recorded_at,
                revocation_time=change.request.revocation_time,
                revocation_reason=_label(change.request.revocation_reason),
                invalidity_date=change.request.invalidity_date,
                not_after=change.request.not_after,
                certificate_sha256=_hex(change.request.certificate_sha256),
                previous_version=change.previous_version,
            )
            for change in changes
        ]
        return History(name, serial_text(serial_number), events)

    async def _identity(self, call: Call) -> WhoAmI:
        credential = call.known_caller.credential
        authority_id = credential.authority_id
        name = None if authority_id is None else await self._authorities.name_of(authority_id)
        return WhoAmI(credential.name, credential.role.value, name, sorted(credential.scopes), credential.expires_at)

    async def _ejbca(self, call: Call) -> EJBCAReply:
        caller = call.known_caller
        issuer = await self._authorities.issuer(caller.authority_id)
        certificate = _ejbca_certificate(call.body.pem, issuer)
        reader = ChangeReader(self._publishers, acting_for=caller.authority_id)
        known = await reader.status(caller.authority_id, certificate.serial_number)
        requests, result = ejbca.differences(call.body, certificate, known, call.now)
        if not requests:
            await ChangeWriter(self._publishers, acting_for=caller.authority_id).confirm()
            return EJBCAReply("unchanged", None if known is None else known.version)
        for request in requests:
            caller.demand_scope(SCOPES[request.change])
        versions = await self._record(call, requests, "")
        return EJBCAReply(result, max(versions))

    async def _openapi(self, _: Call) -> dict[str, Any]:
        return self._document


def _serial_in_path(call: Call) -> str:
    given = call.parameters["serial_number"]
    try:
        return msgspec.convert(given, SerialNumber)
    except msgspec.ValidationError as error:
        raise Problem(
            "invalid",
            f"{given!r:.300} is no serial number: {error}",
            hint="write it in hexadecimal, as openssl x509 -serial shows it",
            errors=[FieldError("/serial_number", "1 to 255 hexadecimal digits", "serial_number")],
        ) from error


def _request_sha256(call: Call) -> bytes:
    """What makes a request with the same key another one: the operation, whose certificate, and the body."""
    digest = hashlib.sha256(f"{call.route.operation}\n{call.parameters.get('serial_number', '')}\n".encode())
    digest.update(call.raw)
    return digest.digest()


def _refused(error: ChangeRefused, requests: Sequence[ChangeRequest], prefix: str) -> Problem:
    """The database's refusal in HTTP: it knows the serial number, we know where in the request that stood."""
    at = next((at for at, each in enumerate(requests) if each.serial_number == error.serial_number), None)
    where = "/serial_number" if at is not None and not prefix else "" if at is None else f"{prefix}/{at}"
    said = FieldError(where or "/", str(error), "serial_number", at if prefix else None)
    hint = "nothing was changed, no change of this request was made; see the certificate's history"
    if isinstance(error, NotYourAuthority):
        return Problem("wrong-authority", str(error), hint="use that authority's own credential", errors=[said])
    if isinstance(error, StateForbids):
        return Problem("conflict", str(error), hint=hint, errors=[said])
    return Problem("invalid", str(error), hint="nothing was changed; correct this and send it again", errors=[said])


def _crl_refused(error: CRLRefused) -> Problem:
    kind = "wrong-authority" if error.verdict is Verdict.NOT_ALLOWED else "crl-refused"
    hint = "nothing was changed"
    if error.verdict is Verdict.DROPPED_ENTRIES:
        hint += "; when the CA really dropped these entries, send the CRL again with ?force=true"
    said = FieldError("/", str(error), error.verdict.value)
    return Problem(kind, str(error), hint=hint, errors=[said])


def _unknown(authority: str, serial_number: bytes) -> Problem:
    return not_found(
        f"the authority {authority} has no certificate {serial_text(serial_number)} on record",
        hint="look at the serial number; a certificate is on record once it was issued or revoked here",
    )


def _status_of(authority: str, record: StatusRecord) -> Status:
    return Status(
        authority=authority,
        serial_number=serial_text(record.serial_number),
        cert_status="held" if record.held else record.cert_status.value,
        version=record.version,
        revocation_time=record.revocation_time,
        revocation_reason=_label(record.revocation_reason),
        invalidity_date=record.invalidity_date,
        not_after=record.not_after,
        certificate_sha256=_hex(record.certificate_sha256),
    )


def _ejbca_certificate(pem: str, issuer: Issuer) -> ejbca.Certificate:
    try:
        view: CertificateView = read_certificate(pem)
    except ValueError as error:
        said = FieldError("/pem", str(error), "pem")
        raise Problem("invalid", f"/pem: {error}", hint="send the certificate as PEM", errors=[said]) from error
    try:
        check_issuer(view, issuer)
    except NotTheIssuer as error:
        said = FieldError("/pem", str(error), "pem")
        hint = (
            "this publisher's credential is for one CA; publish the other CA's certificates with that CA's credential"
        )
        raise Problem("wrong-authority", str(error), hint=hint, errors=[said]) from error
    return ejbca.Certificate(
        issuer.id,
        der.Reader(view.serial_number).content(der.INTEGER),
        view.not_after,
        hashlib.sha256(view.encoded).digest(),
    )


def _way(served: Served) -> Way:
    return "acknowledged" if served.acknowledged else "expired trust"


def _label(reason: CRLReason | None) -> str | None:
    return None if reason is None else reason.label


def _hex(content: bytes | None) -> str | None:
    return None if content is None else content.hex()
