"""Every "no" of the registry, in the one shape of RFC 9457: what is wrong, and what to do about it.

A `Problem` is raised anywhere below the edge and becomes a response in `app` alone. `KINDS` is the whole list; the last
part of a problem's `type` is its kind, and a program that wants to react to a refusal looks at that and at nothing
else. The sentences are for people and may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:lakthan:problem:"
_MOST_ERRORS = 100

# kind: HTTP status, title
KINDS: dict[str, tuple[int, str]] = {
    "malformed-request": (400, "The request cannot be read"),
    "unauthenticated": (401, "Who are you?"),
    "credential-expired": (403, "The credential has expired"),
    "credential-revoked": (403, "The credential was revoked"),
    "certificate-not-in-force": (403, "The client certificate is not in force"),
    "certificate-revoked": (403, "The client certificate was revoked"),
    "certificate-status-unknown": (403, "Nobody can tell whether the client certificate was revoked"),
    "two-identities": (403, "The token and the client certificate are not the same credential"),
    "wrong-role": (403, "The credential has another role"),
    "wrong-scope": (403, "The credential does not allow this"),
    "wrong-authority": (403, "The credential is for another authority"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "Not with this method"),
    "conflict": (409, "What is on record forbids it"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is of another media type"),
    "invalid": (422, "The request is not well formed"),
    "duplicate-serials": (422, "A certificate is named more than once"),
    "idempotency-conflict": (422, "The Idempotency-Key was used for another request"),
    "crl-refused": (422, "The CRL was not accepted"),
    "too-many-requests": (429, "Too many requests at once"),
    "internal": (500, "Something went wrong here"),
    "unavailable": (503, "Not now"),
}


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong with one field. `pointer`: where it is (RFC 6901); `index`: of the change in a batch."""

    pointer: str
    detail: str
    field: str = ""
    index: int | None = None


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """A refusal (RFC 9457). `hint`: what to do next. `error`: the same for programs that show one sentence only."""

    type: str
    title: str
    status: int
    detail: str
    hint: str
    error: str = ""
    errors: list[FieldError] = []


@dataclass(frozen=True, slots=True)
class Headers:
    """Fields of the response that belong to a refusal."""

    retry_after_seconds: int | None = None
    allow: str = ""


class Problem(Exception):
    """A refusal on its way to the edge. Nothing was changed, unless its text says otherwise."""

    def __init__(
        self, kind: str, detail: str, *, hint: str, errors: Sequence[FieldError] = (), headers: Headers = Headers()
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.hint = hint
        self.errors = list(errors[:_MOST_ERRORS])
        self.headers = headers

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.kind][0]

    def fields(self) -> Mapping[str, str]:
        """The header fields that go with it (RFC 9110 §10.2.3, RFC 6750 §3)."""
        fields = {"Cache-Control": "no-store"}
        if self.headers.retry_after_seconds is not None:
            fields["Retry-After"] = str(self.headers.retry_after_seconds)
        if self.headers.allow:
            fields["Allow"] = self.headers.allow
        if self.status == 401:
            fields["WWW-Authenticate"] = 'Bearer realm="lakthan-registry"'
        return fields

    def encode(self, *, short: bool = False) -> bytes:
        """The body. `short`: in less than 1,024 octets, with `error`, for programs that read no more (EJBCA)."""
        status, title = KINDS[self.kind]
        details = ProblemDetails(_TYPE_PREFIX + self.kind, title, status, self.detail, self.hint, errors=self.errors)
        if short:
            said = f"{self.detail}; {self.hint}"
            details = msgspec.structs.replace(
                details, error=_cut(said, 400), detail=_cut(self.detail, 120), hint=_cut(self.hint, 120), errors=[]
            )
        return msgspec.json.encode(details)


def _cut(text: str, octets: int) -> str:
    encoded = text.encode()
    return text if len(encoded) <= octets else encoded[: octets - 3].decode(errors="ignore") + "…"


def not_found(what: str, hint: str) -> Problem:
    """Something that is named in the request is not on record."""
    return Problem("not-found", what, hint=hint)


def unavailable(detail: str, *, seconds: int = 2) -> Problem:
    """Whatever is the matter passes by itself."""
    return Problem(
        "unavailable",
        detail,
        hint="send the same request again after Retry-After; with the same Idempotency-Key nothing happens twice",
        headers=Headers(retry_after_seconds=seconds),
    )
