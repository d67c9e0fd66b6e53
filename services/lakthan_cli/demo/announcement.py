"""What the demo prints when it is ready: one line for scripts, then the commands for people.

Promises: the first line starts with `lakthan demo ready` and is one line however narrow the terminal is. Every command
below it can be copied as it stands.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakthan_cli.demo.addresses import Addresses


def command_name() -> str:
    """How the user can call this program again. A wrapper says so in LAKTHAN_COMMAND."""
    given = os.environ.get("LAKTHAN_COMMAND")
    by_name = Path(sys.argv[0]).name == "lakthan"
    return given or ("lakthan" if by_name else f"{shlex.quote(sys.executable)} -m lakthan_cli")


def announcement(directory: Path, addresses: Addresses) -> str:
    """The ready line, a table of URLs, and commands to try."""

    def file(name: str) -> str:
        return shlex.quote(str(directory / name))

    ocsp, tsa, publication, registry = (
        addresses.url(service) for service in ("ocsp", "tsa", "publication", "registry")
    )
    metrics = "   ".join(f"{addresses.url(f'{each}_admin')}/metrics" for each in ("ocsp", "tsa", "registry"))
    token = f'-H "Authorization: Bearer $(cat {file("tokens/public-ca.token")})"'
    push = f"curl -sS --cacert {file('pki/root.pem')} {token} -H 'Content-Type: application/json'"
    spare = f"$(openssl x509 -in {file('pki/spare-4.pem')} -noout -serial | cut -d= -f2)"
    here = shlex.quote(str(directory))
    lakthan = command_name()
    trust = f"-CAfile {file('pki/tsa-root.pem')} -untrusted {file('pki/tsa-chain.pem')}"
    query, reply = file("request.tsq"), file("response.tsr")
    return f"""\
lakthan demo ready: ocsp={ocsp} tsa={tsa} publication={publication} registry={registry} dir={here}

  OCSP (RFC 6960)             {ocsp}
  Time-stamps (RFC 3161)      {tsa}
  CRLs and CA certificates    {publication}/crl/public-ca.crl   {publication}/ca/public-ca.cer
  Registry, where CAs push    {registry}   (tokens: {file("tokens")})
  Metrics                     {metrics}
  Certificates                {file("pki")}   (the Government CA's: {file("pki/gov")})

Ask for the status of a certificate (also try revoked.pem, held.pem, unissued.pem):
  openssl ocsp -issuer {file("pki/ca.pem")} -cert {file("pki/good.pem")} -url {ocsp} -CAfile {file("pki/root.pem")}

Revoke one, and ask again:
  {lakthan} revoke {file("pki/spare-1.pem")} --reason keyCompromise --dir {here}
  {lakthan} status {file("pki/spare-1.pem")} --dir {here}
  openssl ocsp -issuer {file("pki/ca.pem")} -cert {file("pki/spare-1.pem")} -url {ocsp} -CAfile {file("pki/root.pem")}

Revoke another one as its CA does, by HTTPS with a token; the answer comes when every responder says so:
  {push} -d '{{"revocation_reason": "superseded"}}' "{registry}/v1/certificates/{spare}/revoke?wait=served"

Stamp a file with the time, and check the stamp:
  openssl ts -query -data {file("pki/good.pem")} -sha256 -cert -out {query}
  curl -sS -H 'Content-Type: application/timestamp-query' --data-binary @{query} -o {reply} {tsa}
  openssl ts -verify -queryfile {query} -in {reply} {trust}

Ask all of it as its clients do, and look whether every answer is right:
  {lakthan} probe {file("probe.toml")}

Ctrl-C stops everything."""
