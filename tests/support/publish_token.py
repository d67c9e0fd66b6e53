"""The publisher with a key in a SoftHSM token, in real time: part of `./run publish-soak`.

The service as it is, on a real PostgreSQL; the token is asked for so many signatures a second and no more. Four fifths
of that are needed, so that the schedule is tight, and answers are refreshed twice a minute.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from lakthan.config import Config, DatabaseConfig, PresignConfig, PublisherConfig
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.bulk import import_issued
from lakthan.store.pool import open_pool
from lakthan.store.presigned import Presigned
from lakthan_ocsp.publisher.__main__ import serve
from support.pki import new_ca, new_responder
from support.running import running, samples
from support.softhsm import new_token, tokens_folder

_NAME = "token-ca"
_REFRESH = timedelta(seconds=30)
_BUSY = 0.8


@dataclass
class Minute:
    """What came out. `most_in_a_second`: what came on record between two looks a
    second apart; it comes in bunches, so that this is more than the key was asked for.
    """

    answers: int
    seconds: float
    published: int = 0
    most_in_a_second: float = 0.0
    most_behind_seconds: float = 0.0
    expired: int = 0
    oldest_seconds: float = 0.0
    verified: int = 0


async def real_time(url: str, folder: Path, *, rate: int, seconds: float) -> Minute:
    """Sign ahead for so long with a token that signs `rate` times a second, on the migrated database of `url`."""
    tokens = tokens_folder(folder)
    ca = new_ca("Token CA")
    identity = new_responder(ca)
    certificate, _ = identity.write(folder, "token")
    token = new_token(tokens, folder)
    token.put("ocsp", identity.key)
    certificates = int(rate * _BUSY * _REFRESH.total_seconds() / 2)
    found = Minute(certificates * 2, seconds)
    config = PresignConfig(
        _NAME,
        certificate,
        token.uri("ocsp"),
        refresh=_REFRESH,
        validity=_REFRESH * 3,
        signatures_per_second=float(rate),
    )
    publisher = PublisherConfig([config], DatabaseConfig(url), admin_port=0)
    pool = await open_pool(url, role=None, min_size=1, max_size=1, application_name="soak")
    try:
        authority_id = await AuthorityAdmin(pool).add_authority(_NAME, [ca.der])
        numbers = random.Random(8)
        rows = [(b"\x20" + numbers.randbytes(15), None, None, None, None, None) for _ in range(certificates)]
        await import_issued(pool, authority_id, rows, actor="soak", through="soak")
        async with running(serve, Config(publisher=publisher)) as (_, port), aiohttp.ClientSession() as session:
            loop = asyncio.get_running_loop()
            began = looked_at = loop.time()
            before = 0.0
            while loop.time() - began < seconds:
                await asyncio.sleep(1)
                metrics = await samples(session, f"http://127.0.0.1:{port}")
                total = sum(v for name, v in metrics.items() if name.startswith("lakthan_publisher_published_total"))
                found.most_in_a_second = max(found.most_in_a_second, (total - before) / (loop.time() - looked_at))
                looked_at, before = loop.time(), total
                now = datetime.now(UTC)
                backlog = await Presigned(pool).backlog(authority_id, now)
                if total >= found.answers:  # every certificate has its answers
                    late = 0.0 if backlog.longest is None else (now - backlog.longest).total_seconds()
                    found.most_behind_seconds = max(found.most_behind_seconds, late)
                found.expired += backlog.next_update is not None and backlog.next_update <= now
            found.published = int(before)
        now = datetime.now(UTC)
        answers = await pool.fetch("SELECT response, produced_at, next_update FROM published_answer")
        found.expired += sum(row["next_update"] <= now for row in answers)
        found.oldest_seconds = max((now - row["produced_at"]).total_seconds() for row in answers)
        key = identity.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        for row in answers:
            answer = ocsp.load_der_ocsp_response(row["response"])
            assert answer.signature_hash_algorithm is not None
            key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(answer.signature_hash_algorithm))
            found.verified += 1
    finally:
        await pool.close()
    return found
