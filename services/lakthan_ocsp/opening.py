"""From the configuration of a responder to the responder: profile, keys, certificates and spans, checked together.

A responder of published answers has nothing of all that, and no path leads from its configuration to a key; unless it
names one, for answers that cannot have been signed before they were asked for.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from lakthan.certificates import read_certificates
from lakthan.config import ResponderConfig
from lakthan.errors import ConfigError
from lakthan.identity import Identity
from lakthan.keys.key_ring import KeyRing, open_ring
from lakthan_ocsp.directory import PublishedResponder, Responder
from lakthan_ocsp.governor import Governor, MaxAge
from lakthan_ocsp.profiles import PROFILES, NonIssued
from lakthan_ocsp.requestors import Requestors
from lakthan_ocsp.responder import ResponderTemplate

if TYPE_CHECKING:
    from pathlib import Path

    from lakthan.config import ApprovalConfig, KeyURI
    from lakthan.keys.key_list import Found
    from lakthan.keys.key_ring import Role

ROLE: Role = "OCSP responder of"
_PUBLISHED_MAX_AGE = timedelta(hours=1)
_OF_PUBLISHED = frozenset({"authority", "answers", "max_age"})
# What a responder of published answers may say beside, when it has a key.
_OF_LIVE = frozenset({"certificate", "key", "keys", "profile", "validity", "refresh", "non_issued", "cert_hash"})


def open_published(config: ResponderConfig) -> PublishedResponder:
    """The responder of an authority whose answers are published. Raises `ConfigError` when it has more settings than
    mean anything there: half of a key above all.
    """
    live = signs(config)
    meant = _OF_PUBLISHED | _OF_LIVE if live else _OF_PUBLISHED
    for name in config.__struct_fields__:
        if name not in meant and getattr(config, name) != getattr(ResponderConfig(config.authority), name):
            raise ConfigError(
                f"responder of {config.authority!r}: published answers are given out as they are, so remove {name}; "
                'or say answers = "signed"'
            )
    max_age = _PUBLISHED_MAX_AGE if config.max_age is None else config.max_age
    if max_age < timedelta(0):
        raise ConfigError(f"responder of {config.authority!r}: max_age is negative")
    return PublishedResponder(config.authority, MaxAge(max_age), live)


def signs(config: ResponderConfig) -> bool:
    """Whether the responder has a key: to sign everything, or, beside published answers, what has to be signed live."""
    has_key = config.keys is not None or (config.certificate is not None and config.key is not None)
    return has_key or config.answers != "published"


async def open_keys(
    config: ResponderConfig, approval: ApprovalConfig | None = None, *, late: bool = True
) -> KeyRing[Responder]:
    """The keys of a configured responder, each as the responder that it makes: those of its list, or its only one.

    Raises `ConfigError`. The caller closes the ring. `late`: see `Identity.open`.
    """
    if config.keys is None:
        only = await open_responder(config, late=late)
        ring: KeyRing[Responder] = KeyRing(ROLE, config.authority, None, _never, _close)
        ring.hold(only.identity.view, only)
        return ring
    if config.certificate is not None or config.key is not None:
        raise ConfigError(f"responder of {config.authority!r}: give a key list, or a certificate and its key, not both")
    return await open_ring(
        ROLE, config.authority, config.keys, partial(open_listed, config), _close, approval=approval, late=late
    )


async def open_responder(config: ResponderConfig, *, late: bool = False) -> Responder:
    """Open the key of a configured responder and check everything that can be checked without the store.

    Raises `ConfigError`. The caller closes `identity.signer`. `late`: see `Identity.open`.
    """
    if config.certificate is None or config.key is None:
        raise ConfigError(
            f"responder of {config.authority!r}: give its certificate and key, or its key list, or "
            'answers = "published" for an authority whose answers come from a ceremony'
        )
    return await _open(config, config.certificate, config.key, late=late)


async def open_listed(config: ResponderConfig, found: Found) -> Responder:
    """The responder that a key of a list makes, checked in the same way. Raises `ConfigError`."""
    return await _open(config, found.certificate, found.key, late=found.late)


async def _open(config: ResponderConfig, certificate: Path, key: KeyURI, *, late: bool) -> Responder:
    profile = PROFILES.get(config.profile)
    if profile is None:
        known = ", ".join(sorted(PROFILES))
        raise ConfigError(f"responder of {config.authority!r}: no profile {config.profile!r}; choose one of {known}")
    anchors = read_certificates(config.requestors) if config.requestors else []
    requestors = Requestors(config.signed_requests, anchors)
    identity = await Identity.open(certificate, key, late=late)
    try:
        governor = Governor(config, profile, identity.view)
    except ConfigError:
        await identity.signer.aclose()
        raise
    return Responder(
        config.authority,
        identity,
        governor,
        ResponderTemplate(identity, by_name=profile.by_name),
        requestors,
        NonIssued(config.non_issued) if config.non_issued else profile.non_issued,
        dual_hash=config.dual_hash,
        cert_hash=config.cert_hash,
        final=config.final,
    )


async def _never(_found: Found) -> Responder:
    raise ConfigError("there is no key list")


async def _close(responder: Responder) -> None:
    await responder.identity.signer.aclose()
