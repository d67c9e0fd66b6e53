"""What registrars and auditors do: authorities, policies and credentials; and reading the audit.

A registrar adds and binds; it can change no certificate's status. An auditor reads everything and writes nothing. Both
act in the database as roles that can do no more than that (`lakthan_registrar`, `lakthan_auditor`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from lakthan.errors import ConfigError
from lakthan.store.audit import AuditReader
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeRefused
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.records import AuthorityPolicy, CredentialRole
from lakthan_registry.authority_check import Level, check_authority
from lakthan_registry.crl_url import check_crl_url
from lakthan_registry.messages import (
    AuditHead,
    AuditHeads,
    AuditPage,
    AuditRecord,
    AuthorityAdded,
    AuthoritySummary,
    CredentialMade,
    Credentials,
    NewAuthority,
    NewCredential,
    Policy,
)
from lakthan_registry.messages import (
    Authorities as AuthoritiesReply,
)
from lakthan_registry.messages import (
    Credential as CredentialReply,
)
from lakthan_registry.problems import FieldError, Problem, not_found
from lakthan_registry.reading import read_certificate

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from lakthan.certificates import CertificateView
    from lakthan.store.records import Credential
    from lakthan_registry.authorities import Authorities
    from lakthan_registry.calls import Call, Handler

_NO_AUTHORITY = 0  # the chain of what is done for no single authority


class AdministrationService:
    """The operations of registrars and auditors. `registrars` acts as `lakthan_registrar`, `auditors` as its role."""

    def __init__(self, registrars: asyncpg.Pool, auditors: asyncpg.Pool, authorities: Authorities) -> None:
        self._admin = AuthorityAdmin(registrars)
        self._credentials = CredentialAdmin(registrars)
        self._audit = AuditReader(auditors)
        self._authorities = authorities

    def handlers(self) -> Mapping[str, Handler]:
        """What to do, by the operation's name."""
        return {
            "list_authorities": self._list_authorities,
            "add_authority": self._add_authority,
            "policy": self._policy,
            "set_policy": self._set_policy,
            "list_credentials": self._list_credentials,
            "create_credential": self._create_credential,
            "revoke_credential": self._revoke_credential,
            "audit": self._audit_page,
            "audit_heads": self._audit_heads,
        }

    async def _list_authorities(self, _: Call) -> AuthoritiesReply:
        return AuthoritiesReply(
            [
                AuthoritySummary(record.name, len(record.certificates), record.revocation_time is not None)
                for record in await self._authorities.all()
            ]
        )

    async def _add_authority(self, call: Call) -> AuthorityAdded:
        body: NewAuthority = call.body
        caller = call.known_caller
        views = [_certificate(pem, f"/certificates/{at}", at) for at, pem in enumerate(body.certificates)]
        findings = check_authority(views, call.now)
        said = [f"{finding.certificate}: {finding.what}; {finding.todo}" for finding in findings]
        errors = [
            FieldError("/certificates", text, "certificates")
            for finding, text in zip(findings, said, strict=True)
            if finding.level is Level.ERROR
        ]
        if errors:
            raise Problem(
                "invalid",
                f"these certificates are not fit for an authority: {errors[0].detail}",
                hint="nothing was added; correct what `errors` names",
                errors=errors,
            )
        try:
            await self._admin.add_authority(
                body.name, [view.encoded for view in views], actor=caller.name, through=caller.through
            )
        except ChangeRefused as error:
            raise Problem("conflict", str(error), hint="nothing was added") from error
        return AuthorityAdded(body.name, said)

    async def _policy(self, call: Call) -> Policy:
        authority = await self._authorities.named(call.parameters["authority"])
        policy = await self._admin.policy(authority.id)
        return Policy(
            list(policy.crl_urls), round(policy.declared_delay.total_seconds()), policy.crl_drop_limit_percent
        )

    async def _set_policy(self, call: Call) -> Policy:
        body: Policy = call.body
        caller = call.known_caller
        for at, url in enumerate(body.crl_urls):
            try:
                check_crl_url(url)
            except ConfigError as error:
                said = FieldError(f"/crl_urls/{at}", str(error), "crl_urls", at)
                raise Problem("invalid", f"{said.pointer}: {error}", hint="nothing was set", errors=[said]) from error
        authority = await self._authorities.named(call.parameters["authority"])
        policy = AuthorityPolicy(
            tuple(body.crl_urls), timedelta(seconds=body.declared_delay_seconds), body.crl_drop_limit_percent
        )
        try:
            await self._admin.set_policy(authority.id, policy, actor=caller.name, through=caller.through)
        except ChangeRefused as error:
            raise Problem("conflict", str(error), hint="nothing was set") from error
        return body

    async def _list_credentials(self, _: Call) -> Credentials:
        return Credentials([await self._shown(each) for each in await self._credentials.list()])

    async def _create_credential(self, call: Call) -> CredentialMade:
        body: NewCredential = call.body
        caller = call.known_caller
        is_publisher = body.role == "publisher"
        if is_publisher != (body.authority is not None) or is_publisher != bool(body.scopes):
            raise _invalid(
                "authority" if is_publisher != (body.authority is not None) else "scopes",
                "a publisher has one authority and at least one scope; a registrar and an auditor have neither",
            )
        if len(set(body.scopes)) != len(body.scopes):
            raise _invalid("scopes", "a scope stands here twice")
        authority = None if body.authority is None else await self._authorities.named(body.authority)
        certificate = None if body.certificate is None else _certificate(body.certificate, "/certificate", None)
        try:
            made, token = await self._credentials.create(
                body.name,
                CredentialRole(body.role),
                authority_id=None if authority is None else authority.id,
                scopes=body.scopes,
                expires_at=call.now + timedelta(days=body.days),
                certificate=None if certificate is None else certificate.encoded,
                actor=caller.name,
                through=caller.through,
            )
        except ChangeRefused as error:
            raise Problem(
                "conflict", str(error), hint="nothing was made; choose another name or certificate"
            ) from error
        return CredentialMade(await self._shown(made), token)

    async def _revoke_credential(self, call: Call) -> None:
        caller = call.known_caller
        name = call.parameters["name"]
        if name not in {each.name for each in await self._credentials.list()}:
            raise not_found(f"there is no credential {name}", hint="GET /v1/credentials lists them")
        try:
            await self._credentials.revoke(name, actor=caller.name, through=caller.through)
        except ChangeRefused as error:
            raise Problem("conflict", str(error), hint="nothing was changed") from error

    async def _shown(self, credential: Credential) -> CredentialReply:
        authority_id = credential.authority_id
        return CredentialReply(
            name=credential.name,
            role=credential.role.value,
            authority=None if authority_id is None else await self._authorities.name_of(authority_id),
            scopes=sorted(credential.scopes),
            kind=credential.kind,  # type: ignore[arg-type]
            expires_at=credential.expires_at,
            revoked_at=credential.revoked_at,
            created_by=credential.created_by,
            created_at=credential.created_at,
        )

    async def _audit_page(self, call: Call) -> AuditPage:
        query = call.query
        chain = _NO_AUTHORITY
        if query.authority is not msgspec.UNSET:
            chain = (await self._authorities.named(query.authority)).id
        records = await self._audit.page(chain, after=query.after, limit=query.limit)
        return AuditPage(
            [
                AuditRecord(
                    chain=each.chain,
                    number=each.number,
                    at=each.at,
                    event=each.event,
                    actor=each.actor,
                    through=each.through,
                    login=each.login,
                    detail=each.detail,
                    batch=each.batch,
                    change_count=each.change_count,
                    changes_sha256=None if each.changes_sha256 is None else each.changes_sha256.hex(),
                    previous_sha256=each.previous_sha256.hex(),
                    sha256=each.sha256.hex(),
                )
                for each in records
            ],
            records[-1].number if len(records) == query.limit else None,
        )

    async def _audit_heads(self, _: Call) -> AuditHeads:
        return AuditHeads([AuditHead(each.chain, each.number, each.sha256.hex()) for each in await self._audit.heads()])


def _certificate(text: str, pointer: str, index: int | None) -> CertificateView:
    try:
        return read_certificate(text)
    except ValueError as error:
        said = FieldError(pointer, str(error), pointer.split("/")[1], index)
        raise Problem(
            "invalid",
            f"{pointer}: {error}",
            hint="nothing was changed; send it as openssl x509 prints it",
            errors=[said],
        ) from error


def _invalid(field: str, detail: str) -> Problem:
    said = FieldError(f"/{field}", detail, field)
    return Problem("invalid", f"{said.pointer}: {detail}", hint="nothing was changed; correct it", errors=[said])
