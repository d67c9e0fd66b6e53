"""A token that sleeps over its signatures: SoftHSM behind a library of our own (`slow_hsm.c`), for other processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lakthan.config import KeyURI
from support.programs import need
from support.softhsm import MODULE, Token


@dataclass(frozen=True)
class SlowHSM:
    """The library, and the file that says for how long it sleeps."""

    module: Path
    sleeps: Path

    @classmethod
    def build(cls, home: Path) -> SlowHSM:
        """Compile it. It gets a copy of SoftHSM, which so has nothing to do with SoftHSM itself in the same process."""
        copy = home / "softhsm-of-the-slow-one.so"
        shutil.copy(MODULE, copy)
        module, sleeps = home / "slow_hsm.so", home / "sleeps"
        source = Path(__file__).with_suffix(".c")
        subprocess.run([need("gcc"), "-shared", "-fPIC", "-O1", "-o", module, source, "-ldl"], check=True)
        os.environ |= {"SLOW_HSM_MODULE": str(copy), "SLOW_HSM_FILE": str(sleeps)}
        return cls(module, sleeps)

    def sleep(self, milliseconds: int) -> None:
        """From now on, over every signature. -1: it is removed. -2: its signatures are wrong."""
        before = self.sleeps.with_suffix(".new")
        before.write_text(str(milliseconds))
        before.rename(self.sleeps)

    def uri(self, token: Token, label: str, more: str = "") -> KeyURI:
        """The URI of a key of the token, reached through the slow library."""
        of_softhsm = token.uri(label, more=more)
        return KeyURI(of_softhsm.uri.replace(str(MODULE), str(self.module)), of_softhsm.folder)
