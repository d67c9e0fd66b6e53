"""The services as child processes: started, waited for, stopped; they never outlive the demo.

Promises: a child dies with its parent, however that ends. What it says goes to its log file, and its last lines into
the error when it ends by itself.

Refuses to know: what the children do.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from lakthan.errors import LakthanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOG_LINES = 12
_POLL_SECONDS = 0.05
_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0


class ChildEnded(LakthanError):
    """A child process ended by itself, or never got ready; the message has the last lines of its log."""


@dataclass(slots=True)
class Child:
    """One running child process."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Child:
        """Start a program; its output is added to `log`. `environment` is added to the parent's."""
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                # Ctrl-C in a terminal reaches the whole process group; the demo stops its children in order instead.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        return cls(name, process, log)

    async def until_ready(self, readyz: str) -> None:
        """Wait until the child's `/readyz` says 200. Raises `ChildEnded` when it ends first, or takes too long."""
        said = "nothing yet"
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for _ in range(int(_READY_SECONDS / _POLL_SECONDS)):
                if self.process.returncode is not None:
                    raise self.ended()
                try:
                    async with session.get(readyz) as answer:
                        said = (await answer.text()).strip()
                        if answer.ok:
                            return
                except (aiohttp.ClientError, TimeoutError) as error:
                    said = str(error)
                await asyncio.sleep(_POLL_SECONDS)
        raise ChildEnded(f"{self.name} did not get ready within {_READY_SECONDS:.0f} s ({said}).\n{self._last_words()}")

    def ended(self) -> ChildEnded:
        """The error that says how the child ended."""
        code = self.process.returncode
        how = (
            "is running" if code is None else f"was killed by signal {-code}" if code < 0 else f"left with code {code}"
        )
        return ChildEnded(f"{self.name} {how}.\n{self._last_words()}")

    async def stop(self) -> None:
        """Ask the child to end, and end it when it does not within ten seconds."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join([f"The last lines of {self.log}:", *(f"  {line}" for line in lines)])


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before its program starts, so that `kill -9` of the parent ends it too.

    SIGKILL and not SIGTERM: a child that drained for seconds would keep its port from the next start. The library is
    loaded here, in the parent, because little is safe between fork and exec.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def set_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the signal was set
            os._exit(1)

    return set_signal
