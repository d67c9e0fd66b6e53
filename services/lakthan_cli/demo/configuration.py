"""The configuration files that the demo writes: for its services, and for who asks them. Paths are relative to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lakthan_cli.demo.certificates import POLICY_ARC
from lakthan_cli.demo.inventory import AUTHORITIES, REGISTRY, REGISTRY_CHAIN, TSUS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lakthan_cli.demo.addresses import Addresses

_BEST_PRACTICE = "0.4.0.2023.1.1"
# Signatures that few can verify yet, and tokens of another size: nobody gets one who did not ask for it.
_POLICIES = {"ml-dsa": f"{POLICY_ARC}.5"}
_HEAD = """\
# Written by `lakthan demo` at every start: what you change here is gone at the next one.
# Copy it and run `lakthan serve ocsp --config YOUR-COPY.toml` for a configuration of your own.
"""

_HEAD_OF_PROBE = """\
# Written by `lakthan demo` at every start: what you change here is gone at the next one.
# `lakthan probe probe.toml` asks the demo as its clients do; docs/probe.md has the keys.
"""


def services_toml(addresses: Addresses, databases: Mapping[str, str]) -> str:
    """The text of `lakthan.toml`. `databases`: the URLs for `ocsp`, `tsa` and `registry`; a service without one
    takes DATABASE_URL from its environment.
    """
    lines = [_HEAD, "[ocsp]", *_listening(addresses, "ocsp"), *_database("ocsp", databases)]
    for authority in AUTHORITIES:
        lines += [
            "",
            "[[ocsp.responders]]",
            f"authority = {_text(authority.name)}",
            f"certificate = {_text(authority.responder_certificate)}",
            f"key = {_text('file:' + authority.responder_key)}",
        ]
    lines += [
        "",
        "[tsa]",
        *_listening(addresses, "tsa"),
        '# A demo also runs where nothing disciplines the clock. In earnest this is "enforce".',
        'clock.mode = "warn"',
        *_database("tsa", databases),
    ]
    for name, unit in TSUS.items():
        lines += [
            "",
            f"[tsa.units.{name}]",
            f"certificate = {_text(unit.certificate)}",
            'chain = "pki/tsa-chain.pem"',
            f"key = {_text(f'file:{unit.key}')}",
            "",
            f"[tsa.profiles.{name}]",
            f"units = [{_text(name)}]",
            f"policy = {_text(_POLICIES.get(name, _BEST_PRACTICE))}",
        ]
    lines += [
        "",
        "[registry]",
        *_listening(addresses, "registry"),
        f"certificate = {_text(REGISTRY_CHAIN)}",
        f"key = {_text(REGISTRY.key or '')}",
        *_database("registry", databases),
    ]
    return "\n".join(lines) + "\n"


def probe_toml(addresses: Addresses) -> str:
    """The text of `probe.toml`: what `lakthan probe` asks the demo, and what is right."""
    lines = [_HEAD_OF_PROBE, 'trust = ["pki/root.pem"]', 'chain = ["pki/tsa-chain.pem"]']
    lines += [
        "",
        "[limits]",
        "# A demo shares its machine with everything else; in earnest a second is long.",
        'slow = "PT10S"',
    ]
    for name, issuer, good, others in (
        ("root", "pki/root.pem", "pki/ca.pem", ()),
        ("public-ca", "pki/ca.pem", "pki/good.pem", ("pki/revoked.pem", "pki/unissued.pem")),
        ("gov-ca", "pki/gov/ca.pem", "pki/gov/good.pem", ("pki/gov/revoked.pem", "pki/gov/unissued.pem")),
    ):
        lines += ["", "[[authorities]]", f"name = {_text(name)}", f"issuer = {_text(issuer)}", f"good = {_text(good)}"]
        lines += [f"{what} = {_text(file)}" for what, file in zip(("revoked", "unissued"), others, strict=False)]
        lines.append(f"urls = [{_text(addresses.url('ocsp'))}]")
    tsa = addresses.url("tsa").rstrip("/")
    for name in TSUS:
        url = tsa if name == "default" else f"{tsa}/tsa/{name}"
        policy = _POLICIES.get(name, _BEST_PRACTICE)
        lines += ["", "[[tsas]]", f"url = {_text(url)}", f"policies = [{_text(policy)}]"]
    return "\n".join(lines) + "\n"


def _listening(addresses: Addresses, service: str) -> list[str]:
    return [
        f"host = {_text(addresses.host)}",
        f"port = {addresses.ports[service]}",
        f"admin_port = {addresses.ports[f'{service}_admin']}",
    ]


def _database(service: str, databases: Mapping[str, str]) -> list[str]:
    url = databases.get(service)
    return [] if url is None else ["", f"[{service}.database]", f"url = {_text(url)}"]


def _text(value: str) -> str:
    # A JSON string of printable characters is a TOML basic string.
    return json.dumps(value, ensure_ascii=False)
