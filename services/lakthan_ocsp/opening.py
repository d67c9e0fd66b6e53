"""From the configuration of a responder to the responder: profile, key, certificate and spans, checked together.

A responder of published answers has nothing of all that: no path leads from its configuration to a key.
"""

from __future__ import annotations

from datetime import timedelta

from lakthan.certificates import read_certificates
from lakthan.config import ResponderConfig
from lakthan.errors import ConfigError
from lakthan.identity import Identity
from lakthan_ocsp.directory import PublishedResponder, Responder
from lakthan_ocsp.governor import Governor, MaxAge
from lakthan_ocsp.profiles import PROFILES, NonIssued
from lakthan_ocsp.requestors import Requestors
from lakthan_ocsp.responder import ResponderTemplate

_PUBLISHED_MAX_AGE = timedelta(hours=1)
_OF_PUBLISHED = frozenset({"authority", "answers", "max_age"})


def open_published(config: ResponderConfig) -> PublishedResponder:
    """The responder of an authority whose answers are published. Raises `ConfigError` when it has more settings than
    mean anything there: a certificate or a key above all.
    """
    for name in config.__struct_fields__:
        if name not in _OF_PUBLISHED and getattr(config, name) != getattr(ResponderConfig(config.authority), name):
            raise ConfigError(
                f"responder of {config.authority!r}: published answers are given out as they are, so remove {name}; "
                'or say answers = "signed"'
            )
    max_age = _PUBLISHED_MAX_AGE if config.max_age is None else config.max_age
    if max_age < timedelta(0):
        raise ConfigError(f"responder of {config.authority!r}: max_age is negative")
    return PublishedResponder(config.authority, MaxAge(max_age))


async def open_responder(config: ResponderConfig) -> Responder:
    """Open the key of a configured responder and check everything that can be checked without the store.

    Raises `ConfigError`. The caller closes `identity.signer`.
    """
    profile = PROFILES.get(config.profile)
    if profile is None:
        known = ", ".join(sorted(PROFILES))
        raise ConfigError(f"responder of {config.authority!r}: no profile {config.profile!r}; choose one of {known}")
    if config.certificate is None or config.key is None:
        raise ConfigError(
            f'responder of {config.authority!r}: give its certificate and key, or answers = "published" for an '
            "authority whose answers come from a ceremony"
        )
    anchors = read_certificates(config.requestors) if config.requestors else []
    requestors = Requestors(config.signed_requests, anchors)
    identity = await Identity.open(config.certificate, config.key)
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
