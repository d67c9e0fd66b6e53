"""A foreign program beside ours at the same tokens: python-pkcs11, the interop check of our PKCS#11 adapter.

It runs in a process of its own, because it initialises the vendor's library in another way than the adapter does
(decision 0014 tells why it is not the engine). The process reads a JSON array a line, `[DO, TOKEN, …]`, and answers
with a JSON object; octets are in hexadecimal.

- `find LABEL`: the keys of that label, looked for by their label and again by their id, and what they may do.
- `sign LABEL MECHANISM MESSAGE`, `verify LABEL MECHANISM MESSAGE SIGNATURE`: with the token's own key objects.
- `generate LABEL KIND`: a key pair that stays in the token.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pkcs11
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from pkcs11.util.ec import encode_named_curve_parameters
from pkcs11.util.rsa import encode_rsa_public_key

from support.softhsm import MODULE, PIN, Token

# Mechanism → hash and octets of r and s. SoftHSM's CKM_ECDSA takes the digest and gives r and s side by side.
_ECDSA = {"P-256": ("sha256", 32), "P-384": ("sha384", 48)}
_PSS = (pkcs11.Mechanism.SHA256, pkcs11.MGF.SHA256, 32)
_CURVES = {"P-256": "secp256r1", "P-384": "secp384r1"}


class Peer:
    """The process, and what it is asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, do: str, token: Token, *arguments: str) -> dict[str, Any]:
        """Let python-pkcs11 do one thing with a token."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([do, token.label, *arguments]), file=self._process.stdin, flush=True)
        said: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        assert "error" not in said, said["error"]
        assert said, "the process has ended"
        return said


@contextmanager
def peer() -> Iterator[Peer]:
    """Start the process; SOFTHSM2_CONF has to be set before."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "support.pkcs11_peer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as process:
        yield Peer(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def _find(session: Any, label: str) -> dict[str, Any]:  # noqa: ANN401 - a compiled class without types
    found = {}
    for kind, name in ((pkcs11.ObjectClass.PRIVATE_KEY, "private"), (pkcs11.ObjectClass.PUBLIC_KEY, "public")):
        by_label = session.get_key(object_class=kind, label=label)
        by_id = session.get_key(object_class=kind, id=by_label.id)
        assert by_label == by_id
        found[name] = {"id": by_label.id.hex(), "kind": by_label.key_type.name}
    private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=label)
    public = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=label)
    found["private"] |= {
        "sensitive": private[pkcs11.Attribute.SENSITIVE],
        "extractable": private[pkcs11.Attribute.EXTRACTABLE],
    }
    if public.key_type is pkcs11.KeyType.RSA:
        found["public"]["key"] = encode_rsa_public_key(public).hex()
    else:
        found["public"]["key"] = public[pkcs11.Attribute.EC_POINT].hex()
    return found


def _how(mechanism: str, message: bytes) -> tuple[bytes, dict[str, Any]]:
    """What the token is given, and under which mechanism."""
    if mechanism in _ECDSA:
        return hashlib.new(_ECDSA[mechanism][0], message).digest(), {"mechanism": pkcs11.Mechanism.ECDSA}
    if mechanism == "PSS":
        return message, {"mechanism": pkcs11.Mechanism.SHA256_RSA_PKCS_PSS, "mechanism_param": _PSS}
    names = {"PKCS#1": pkcs11.Mechanism.SHA256_RSA_PKCS, "Ed25519": pkcs11.Mechanism.EDDSA}
    return message, {"mechanism": names[mechanism]}


def _sign(session: Any, label: str, mechanism: str, message: str) -> dict[str, Any]:  # noqa: ANN401
    key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=label)
    given, how = _how(mechanism, bytes.fromhex(message))
    signature = key.sign(given, **how)
    if mechanism in _ECDSA:
        half = _ECDSA[mechanism][1]
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        signature = encode_dss_signature(r, s)
    return {"signature": signature.hex()}


def _verify(session: Any, label: str, mechanism: str, message: str, signature: str) -> dict[str, Any]:  # noqa: ANN401
    key = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=label)
    given, how = _how(mechanism, bytes.fromhex(message))
    octets = bytes.fromhex(signature)
    if mechanism in _ECDSA:
        half = _ECDSA[mechanism][1]
        octets = b"".join(each.to_bytes(half, "big") for each in decode_dss_signature(octets))
    return {"verifies": key.verify(given, octets, **how)}


def _generate(session: Any, label: str, kind: str) -> dict[str, Any]:  # noqa: ANN401
    common = {"label": label, "id": os.urandom(4), "store": True}
    if kind.startswith("RSA"):
        session.generate_keypair(pkcs11.KeyType.RSA, int(kind.removeprefix("RSA-")), **common)
        return {"made": kind}
    if kind == "Ed25519":
        curve, of = encode_named_curve_parameters("1.3.101.112"), pkcs11.KeyType.EC_EDWARDS
    else:
        curve, of = encode_named_curve_parameters(_CURVES[kind]), pkcs11.KeyType.EC
    parameters = session.create_domain_parameters(of, {pkcs11.Attribute.EC_PARAMS: curve}, local=True)
    parameters.generate_keypair(**common)
    return {"made": kind}


def main() -> None:
    """Answer line by line until there are no more."""
    library = pkcs11.lib(str(MODULE))
    works: dict[str, Callable[..., dict[str, Any]]] = {
        "find": _find,
        "sign": _sign,
        "verify": _verify,
        "generate": _generate,
    }
    for line in sys.stdin:
        do, token, *arguments = json.loads(line)
        library.reinitialize()  # SoftHSM looks for new tokens only then
        try:
            with library.get_token(token_label=token).open(user_pin=PIN, rw=do == "generate") as session:
                said = works[do](session, *arguments)
        except pkcs11.PKCS11Error as error:
            said = {"error": f"{do}: {type(error).__name__} {error}"}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
