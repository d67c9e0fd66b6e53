"""`p11-kit server`: a token's library in a process of its own, reached through a socket, as a side-car runs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.programs import need
from support.softhsm import MODULE, Token

CLIENT = Path("/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so")


@contextmanager
def sidecar(token: Token) -> Iterator[str]:
    """Serve one token; gives what `P11_KIT_SERVER_ADDRESS` must be for its clients."""
    socket = token.home / "p11.sock"
    command = [str(need("p11-kit")), "server", "--foreground", "--sh", f"--provider={MODULE}", f"--name={socket}"]
    server = subprocess.Popen([*command, f"pkcs11:token={token.label}"], stdout=subprocess.PIPE, env=os.environ)
    try:
        if server.stdout is None:
            raise AssertionError("a pipe was asked for")
        said = server.stdout.readline().decode()
        yield said.split("=", 1)[1].split(";", 1)[0].strip().strip("'\"")
    finally:
        server.terminate()
        server.wait(10)
        if server.stdout is not None:
            server.stdout.close()
