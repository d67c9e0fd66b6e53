"""The PDF job as its users do it, by pyHanko: sign with time-stamps and embedded evidence, and validate years or days
later. Nothing of Lakthan is imported here.

As a program it validates files at the time of its own clock, so that it can be run under another clock:
`python -m interop.pades ROOT.pem FILE.pdf …` prints a JSON object of verdicts by file name, and on standard error
what pyHanko says in words.
"""

# pyHanko is typed in parts only.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import aclosing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from asn1crypto import x509
from pyhanko.keys import load_cert_from_pemder
from pyhanko.pdf_utils import generic, writer
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from pyhanko.pdf_utils.reader import PdfFileReader
from pyhanko.sign import fields, signers
from pyhanko.sign.ades.report import AdESPassed
from pyhanko.sign.timestamps import HTTPTimeStamper
from pyhanko.sign.validation.ades import ades_lta_validation
from pyhanko.sign.validation.dss import DocumentSecurityStore
from pyhanko.sign.validation.policy_decl import (
    PdfSignatureValidationSpec,
    RevinfoOnlineFetchingRule,
    RevocationInfoGatheringSpec,
    SignatureValidationSpec,
)
from pyhanko_certvalidator import ValidationContext
from pyhanko_certvalidator.context import CertValidationPolicySpec
from pyhanko_certvalidator.policy_decl import REQUIRE_REVINFO, CertRevTrustPolicy
from pyhanko_certvalidator.registry import SimpleTrustManager

PASSED = str(AdESPassed.OK)


def minimal_pdf() -> BytesIO:
    """One empty page."""
    made = writer.PdfFileWriter(stream_xrefs=False)
    contents = made.add_object(generic.StreamObject(stream_data=b"q Q"))
    made.insert_page(writer.PageObject(contents=contents, media_box=(0, 0, 200, 200)))
    out = BytesIO()
    made.write(out)
    return out


@dataclass(frozen=True)
class Signatory:
    """Who signs: a certificate and key in `folder` (PEM, `name`.pem and `name`.key), with ca.pem and chain.pem beside
    them. `root` is the only certificate that is trusted, `tsa` the time-stamp authority's URL.
    """

    folder: Path
    root: x509.Certificate
    tsa: str
    name: str = "pdf"

    async def sign(self, level: str) -> bytes:
        """A signed PDF of the PAdES baseline level B-B, B-T or B-LTA. For B-LTA the OCSP answers are fetched from where
        the certificates say. Raises pyHanko's errors.
        """
        signer = signers.SimpleSigner.load(
            str(self.folder / f"{self.name}.key"),
            str(self.folder / f"{self.name}.pem"),
            ca_chain_files=(str(self.folder / "ca.pem"), str(self.folder / "chain.pem")),
        )
        assert signer is not None
        archive = level == "B-LTA"
        timestamper = None if level == "B-B" else HTTPTimeStamper(self.tsa)
        context = ValidationContext(trust_roots=[self.root], allow_fetching=True, revocation_mode="require")
        async with aclosing(context):
            metadata = signers.PdfSignatureMetadata(
                field_name="Signature",
                subfilter=fields.SigSeedSubFilter.PADES,
                embed_validation_info=archive,
                use_pades_lta=archive,
                validation_context=context if archive else None,  # with one, pyHanko asks before it signs
            )
            out = BytesIO()
            await signers.PdfSigner(metadata, signer, timestamper=timestamper).async_sign_pdf(
                IncrementalPdfFileWriter(minimal_pdf()), output=out
            )
        return out.getvalue()


@dataclass(frozen=True)
class Verdict:
    """What pyHanko thinks. `indication`: PASSED or the sub-indication of ETSI EN 319 102-1 §5.1.3 that explains why
    not. `text`: its report for people.
    """

    indication: str
    text: str
    best_signature_time: str
    archive_time: str


async def validate(pdf: bytes, root: x509.Certificate) -> Verdict:
    """Validate the first signature now, trusting `root` alone, with the status of every certificate demanded.

    Evidence for the past comes from the PDF only; certificates that are in force are asked about online. These are
    pyHanko's own defaults.
    """
    signature = PdfFileReader(BytesIO(pdf)).embedded_regular_signatures[0]
    policy = CertValidationPolicySpec(
        trust_manager=SimpleTrustManager.build([root]), revinfo_policy=CertRevTrustPolicy(REQUIRE_REVINFO)
    )
    gathering = RevocationInfoGatheringSpec(RevinfoOnlineFetchingRule.NO_HISTORICAL_FETCH)
    result = await ades_lta_validation(
        signature, PdfSignatureValidationSpec(SignatureValidationSpec(policy, gathering))
    )
    words = [str(result.ades_subindic), str(result.failure_msg)]
    if result.api_status is not None:
        words.append(result.api_status.pretty_print_details())
    return Verdict(
        str(result.ades_subindic),
        "\n".join(words),
        str(result.best_signature_time),
        str(result.oldest_evidence_record_timestamp),
    )


def evidence(pdf: bytes) -> tuple[int, int, int]:
    """How many OCSP responses, CRLs and certificates are embedded."""
    store = DocumentSecurityStore.read_dss(PdfFileReader(BytesIO(pdf)))
    return len(store.ocsps), len(store.crls), len(list(store.load_certs()))


async def _main(root: Path, files: list[Path]) -> None:
    anchor = load_cert_from_pemder(str(root))
    verdicts = {file.name: await validate(file.read_bytes(), anchor) for file in files}
    for name, verdict in verdicts.items():
        print(f"--- {name}\n{verdict.text}", file=sys.stderr)
    print(json.dumps({name: [each.indication, each.archive_time] for name, each in verdicts.items()}))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # pyHanko logs a traceback for every path that it tries in vain
    asyncio.run(_main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
