"""What each role may do with each table: the whole list, for who compares a database with it (`diagnosis`).

The revisions give these rights; a test holds the two together. A right that somebody took away breaks a service, one
that somebody added is a way in: a flaw in a service can do as much as its role may.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

Right = tuple[str, str]  # a verb and a table

VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
# Reading which revision the schema has is for everybody, and is asked for by itself (`lakthan.store.schema`).
SCHEMA = ("SELECT", "alembic_version")

_AUTHORITIES = ("authority", "authority_name", "authority_key", "authority_certificate", "authority_crl")
_ANSWERING = ("certificate_status", "published_answer", "presigned_authority", "audit_head", "heartbeat")
_OVERSEEN = (
    *_AUTHORITIES,
    *_ANSWERING,
    "status_change",
    "timestamp_token",
    "serial_epoch",
    "clock_event",
    "tsu_freeze",
    "token_retention",
    "authority_policy",
    "authority_login",
    "credential",
    "idempotency_key",
    "audit_record",
    "crl_scope",
    "crl_scope_authority",
    "crl_hold",
)
_KEPT_FOR_CAS = (
    "certificate_status",
    "published_answer",
    "audit_head",
    "status_change",
    "authority_policy",
    "credential",
    "idempotency_key",
    "audit_record",
    "crl_scope",
    "crl_scope_authority",
    "crl_hold",
)


def _may(verbs: str, *tables: str) -> set[Right]:
    return set(product(verbs.split(), tables))


RIGHTS: Mapping[str, frozenset[Right]] = {
    "lakthan_responder": frozenset(_may("SELECT", *_AUTHORITIES, *_ANSWERING, "audit_record")),
    "lakthan_presigner": frozenset(_may("SELECT", *_AUTHORITIES, *_ANSWERING)),
    "lakthan_tsa": frozenset(
        _may("INSERT", "timestamp_token", "clock_event")
        | _may("INSERT SELECT", "serial_epoch")  # the number that was given comes back by RETURNING
        | _may("SELECT", "tsu_freeze")
    ),
    "lakthan_registry": frozenset(
        _may("SELECT", *_OVERSEEN)
        | _may("INSERT UPDATE DELETE", *_AUTHORITIES, "idempotency_key")
        | _may("INSERT", "status_change", "tsu_freeze")
        | _may("INSERT UPDATE", "authority_policy", "credential")
        | _may("INSERT DELETE", "authority_login")
    ),
    "lakthan_registrar": frozenset(
        _may("SELECT", *_OVERSEEN)
        | _may("INSERT", "authority", "authority_name", "authority_key", "authority_certificate")
        | _may("INSERT UPDATE", "authority_policy", "credential")
        | _may("INSERT DELETE", "authority_login")
    ),
    "lakthan_auditor": frozenset(_may("SELECT", *_OVERSEEN)),
    "lakthan_publisher": frozenset(
        _may("SELECT", *_AUTHORITIES, *_KEPT_FOR_CAS)
        | _may("INSERT", "status_change")
        | _may("INSERT UPDATE DELETE", "idempotency_key")
    ),
}
