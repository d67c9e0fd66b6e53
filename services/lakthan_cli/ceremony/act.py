"""One ceremony from the plan to the folder: signed, verified, written, read back, verified once more.

Promises: whatever goes wrong, no folder is there afterwards.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from lakthan_cli.ceremony import bundle, paper, protocol
from lakthan_cli.ceremony.signing import sign
from lakthan_cli.ocsp.certificate import Certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lakthan_cli.ceremony.bundle import Bundle
    from lakthan_cli.ceremony.programme import Programme
    from lakthan_cli.ceremony.signing import Signed


async def perform(programme: Programme, target: Path, *, advance: Callable[[], None]) -> Bundle:
    """Sign what is planned and leave it in the new folder `target`. `advance` is called after every signature.

    Raises `ConfigError`, `SignerUnusable` and `CeremonyRefused`.
    """
    done: list[tuple[datetime, str]] = []

    def step(text: str) -> None:
        done.append((datetime.now(UTC), text))

    step("The plan was read and checked.")
    with bundle.new_folder(target) as folder:
        signed = await sign(programme, advance=advance, step=step)
        files = _files(programme, signed)
        manifest = bundle.manifest_of(files)
        bundle.write(folder, files | {bundle.MANIFEST: manifest})
        again = bundle.read(folder)
        bundle.verify(again, [Certificate.from_der(programme.plan.root_view.encoded)])
        step(f"{len(files)} files and their {bundle.MANIFEST} were written, read again and verified again.")
        title = programme.plan.ceremony.title
        parts = paper.parts(programme, files, manifest, done)
        markdown, html = bundle.PROTOCOLS
        bundle.write(folder, {markdown: protocol.markdown(title, parts).encode()})
        bundle.write(folder, {html: protocol.page(title, parts).encode()})
    return again


def _files(programme: Programme, signed: Signed) -> dict[str, bytes]:
    plan = programme.plan
    files = {bundle.answer_name(name): answer.encoded for name, answer in signed.answers.items()}
    files[bundle.ARL_NAME] = signed.arl.encoded
    files["plan.toml"] = plan.text
    files["root.pem"] = plan.root_view.certificate.public_bytes(Encoding.PEM)
    if plan.responder_view is not None:
        files["responder.pem"] = plan.responder_view.certificate.public_bytes(Encoding.PEM)
    return files
