"""RSASSA-PSS, chosen by the key's URI: responders with it wherever the key is, and units that do not take it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
from asn1crypto import algos
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from lakthan.algorithms import RSASSA_PSS_SHA256
from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan.errors import ConfigError
from lakthan.keys import open_signer, prove
from lakthan.keys.software import SoftwareSigner
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan_cli.__main__ import main
from lakthan_ocsp.__main__ import serve
from lakthan_registry.monitor_ask import Said, ask_about
from lakthan_tsa.authority import TokenTemplate, draft
from lakthan_tsa.opening import open_unit
from lakthan_tsa.syntax import granted, parse_request
from support.database import OpenPool
from support.fake_awskms import FakeAWSKMS
from support.fake_vault import FakeVault
from support.pki import Issued, issue, new_ca, new_responder, shared_key
from support.programs import need
from support.responder import ACTOR
from support.running import running
from support.softhsm import new_token, tokens_folder
from support.tsa import POLICY, digest_algorithm, new_unit

BACKENDS = ("file", "token", "vault", "awskms")
PSS = "x-signature=pss"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has its tokens."""
    need("softhsm2-util")
    return tokens_folder(tmp_path_factory.mktemp("softhsm"))


@contextmanager
def held(backend: str, issued: Issued, home: Path, tokens: Path) -> Iterator[KeyURI]:
    """The key of a certificate in this place, and its URI that says PSS."""
    with ExitStack() as stack:
        if backend == "file":
            _, key = issued.write(home, "held")
            yield KeyURI(f"file:{key.name}?{PSS}", home)
        elif backend == "token":
            token = new_token(tokens, home)
            token.put("ocsp", issued.key)
            yield token.uri("ocsp", more=f"&{PSS}")
        elif backend == "vault":
            vault = FakeVault(home)
            vault.put("ocsp", f"RSA-{issued.certificate.public_key().key_size}", issued.key)  # type: ignore[union-attr]
            stack.enter_context(vault.running())
            yield vault.uri(more=f"&{PSS}")
        else:
            kms = FakeAWSKMS(home)
            kms.put("ocsp", issued.key)
            stack.enter_context(kms.running())
            yield kms.uri(more=f"&{PSS}")


async def openssl_says(home: Path, url: str) -> str:
    """What `openssl ocsp` says of the answer about leaf.pem."""
    asking = await asyncio.create_subprocess_exec(
        need("openssl"),
        *("ocsp", "-issuer", "ca.pem", "-cert", "leaf.pem", "-url", url, "-CAfile", "ca.pem", "-respout", "answer.der"),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asking.communicate()
    return said.decode()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_answers_with_pss(
    backend: str, database_url: str, open_as: OpenPool, tokens: Path, tmp_path: Path
) -> None:
    """A responder whose key's URI says PSS: openssl, our own client and the registry's comparison verify its answers,
    and the answer's AlgorithmIdentifier is that of RFC 4055 §3.1, octet for octet as an independent encoder writes it.
    """
    ca = new_ca("pss", kind="RSA-2048")
    identity, leaf = new_responder(ca, kind="RSA-3072"), issue("leaf", ca)
    certificate, _ = identity.write(tmp_path, "responder")
    for name, written in {"ca": ca, "leaf": leaf}.items():
        (tmp_path / f"{name}.pem").write_bytes(written.certificate.public_bytes(Encoding.PEM))
    pool = await open_as("lakthan_registry")
    authority = await AuthorityAdmin(pool).add_authority("pss", [ca.der])
    ends = leaf.certificate.not_valid_after_utc
    await ChangeWriter(pool).issue(authority, leaf.serial_number, not_after=ends, actor=ACTOR)
    with held(backend, identity, tmp_path, tokens) as key:
        responders = [ResponderConfig("pss", certificate, key)]
        config = Config(ocsp=OCSPConfig(responders, DatabaseConfig(database_url), port=0, admin_port=0))
        async with running(serve, config) as (port, _):
            url = f"http://127.0.0.1:{port}"
            said = await openssl_says(tmp_path, url)
            assert "Response verify OK" in said, said
            assert "leaf.pem: good" in said, said
            query = ["ocsp", "query", "leaf.pem", "--issuer", "ca.pem", "--trust", "ca.pem", "--url", url]
            files = [str(tmp_path / word) if word.endswith(".pem") else word for word in query]
            ours = await asyncio.to_thread(CliRunner().invoke, main, files)
            assert ours.exit_code == 0, ours.output
            assert "id-RSASSA-PSS with SHA256 and 32 octets of salt" in ours.output
            async with aiohttp.ClientSession() as session:
                compared = await ask_about(session, url, ca.certificate, [leaf.serial_number])
            assert compared == {leaf.serial_number: Said("good")}
    answer = ocsp.load_der_ocsp_response((tmp_path / "answer.der").read_bytes())
    assert answer.signature_algorithm_oid == x509.SignatureAlgorithmOID.RSASSA_PSS
    hashed = digest_algorithm("sha256", null=True)
    independent = algos.SignedDigestAlgorithm(
        {
            "algorithm": "rsassa_pss",
            "parameters": {
                "hash_algorithm": hashed,
                "mask_gen_algorithm": {"algorithm": "mgf1", "parameters": hashed},
                "salt_length": 32,
            },
        }
    )
    assert independent.dump() == RSASSA_PSS_SHA256.algorithm_identifier
    assert independent.dump() in answer.public_bytes(Encoding.DER)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_wrong_word_and_a_wrong_key(backend: str, tokens: Path, tmp_path: Path) -> None:
    """Another word than pss or pkcs1v15 is refused; and so is PSS with a key that is not RSA, wherever it is."""
    with held(backend, issue("ec"), tmp_path, tokens) if backend != "vault" else _vault_ec(tmp_path) as key:
        with pytest.raises(ConfigError, match="x-signature=pss is for RSA keys"):
            await asyncio.to_thread(open_signer, key)
        wrong = KeyURI(key.uri.replace(PSS, "x-signature=oaep"), key.folder)
        with pytest.raises(ConfigError, match="x-signature is pkcs1v15 or pss"):
            await asyncio.to_thread(open_signer, wrong)


@contextmanager
def _vault_ec(home: Path) -> Iterator[KeyURI]:
    vault = FakeVault(home)
    vault.put("ocsp", "P-256", shared_key("P-256"))
    with vault.running():
        yield vault.uri(more=f"&{PSS}")


async def test_a_proof_knows_the_two_apart(tmp_path: Path) -> None:
    """A PKCS#1 signature is none by PSS: the proof at start takes only what the algorithm says."""
    issued = issue("rsa", kind="RSA-2048")
    issued.write(tmp_path, "key")
    pss = open_signer(KeyURI(f"file:key.key?{PSS}", tmp_path))
    plain = open_signer(KeyURI("file:key.key?x-signature=pkcs1v15", tmp_path))
    await prove(pss, issued.key.public_key())
    await prove(plain, issued.key.public_key())
    assert (pss.algorithm.pss, plain.algorithm.pss) == (True, False)


async def test_a_unit_does_not_take_it(tmp_path: Path) -> None:
    """`openssl ts` reads tokens as PKCS#7 and knows no PSS there: such a unit is refused with that reason. TSA-V14."""
    unit = new_unit("RSA-3072").write(tmp_path)
    assert unit.key is not None
    with_pss = msgspec.structs.replace(unit, key=KeyURI(f"{unit.key.uri}?{PSS}", unit.key.folder))
    with pytest.raises(ConfigError, match="do not read RSASSA-PSS"):
        await open_unit("main", with_pss)


async def test_why_units_do_not_take_it(tmp_path: Path) -> None:
    """The same token with PSS: openssl verifies it as CMS, and refuses it as a time-stamp. TSA-V14."""
    unit = new_unit("RSA-2048")
    unit.write(tmp_path)
    (tmp_path / "data").write_bytes(b"data")
    ask = ["ts", "-query", "-data", "data", "-sha256", "-cert", "-out", "req.tsq"]
    assert await _openssl(tmp_path, ask) == 0
    assert isinstance(unit.leaf.key, rsa.RSAPrivateKey)
    for pss, as_time_stamp in ((False, 0), (True, 1)):
        identity = replace(unit.identity(), signer=SoftwareSigner(unit.leaf.key, pss=pss))
        template = TokenTemplate(identity, policy=POLICY, accuracy=timedelta(seconds=1))
        request = parse_request((tmp_path / "req.tsq").read_bytes(), offered_policies=frozenset({template.policy}))
        made = draft(request, template, serial_number=bytes(range(1, 17)), gen_time=datetime.now(UTC))
        token = made.seal(await identity.signer.sign(made.tbs))
        (tmp_path / "token.der").write_bytes(token)
        (tmp_path / "resp.tsr").write_bytes(granted(token))
        judge = ["ts", "-verify", "-in", "resp.tsr", "-queryfile", "req.tsq", "-CAfile", "root.pem"]
        assert await _openssl(tmp_path, judge) == as_time_stamp
        judge = ["cms", "-verify", "-inform", "DER", "-in", "token.der", "-CAfile", "root.pem"]
        assert await _openssl(tmp_path, [*judge, "-purpose", "timestampsign", "-out", "content"]) == 0


async def _openssl(home: Path, arguments: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(
        need("openssl"), *arguments, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return await process.wait()
