"""From the configuration of a responder to the responder: profile, key, certificate and spans, checked together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.certificates import read_certificates
from lakthan.errors import ConfigError
from lakthan.identity import Identity
from lakthan_ocsp.directory import Responder
from lakthan_ocsp.governor import Governor
from lakthan_ocsp.profiles import PROFILES, NonIssued
from lakthan_ocsp.requestors import Requestors
from lakthan_ocsp.responder import ResponderTemplate

if TYPE_CHECKING:
    from lakthan.config import ResponderConfig


async def open_responder(config: ResponderConfig) -> Responder:
    """Open the key of a configured responder and check everything that can be checked without the store.

    Raises `ConfigError`. The caller closes `identity.signer`.
    """
    profile = PROFILES.get(config.profile)
    if profile is None:
        known = ", ".join(sorted(PROFILES))
        raise ConfigError(f"responder of {config.authority!r}: no profile {config.profile!r}; choose one of {known}")
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
