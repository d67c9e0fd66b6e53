"""How many signatures a core makes when it does nothing else: `python -m support.bench_sign KEY.pem SECONDS`.

This is the bound that answers and tokens are compared with: the same library, the same kind of key, no HTTP, no
database. Prints signatures per second, and the seconds of processor time that one takes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

_BURST = 20


def signing(pem: bytes) -> Callable[[], bytes]:
    """One signature of an OCSP answer's size with this key."""
    key, message, digest = load_pem_private_key(pem, None), bytes(300), hashes.SHA256()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        scheme = ec.ECDSA(digest)
        return lambda: key.sign(message, scheme)
    if isinstance(key, rsa.RSAPrivateKey):
        padded = padding.PKCS1v15()
        return lambda: key.sign(message, padded, digest)
    raise TypeError(f"{type(key).__name__} is not measured here")


def main() -> None:
    """Measure for about as long as was asked for."""
    sign, seconds = signing(Path(sys.argv[1]).read_bytes()), float(sys.argv[2])
    sign()
    count, started, cpu_started = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(_BURST):
            sign()
        count += _BURST
    print(count / elapsed, (time.process_time() - cpu_started) / count)


if __name__ == "__main__":
    main()
