"""Lines about requests of a real responder: a sample, every refusal and every *revoked*, and nothing of the clients."""

from __future__ import annotations

import json
from pathlib import Path

from service.test_workers import supervised
from support.pki import issue
from support.responder import ACTOR, OCSPReply, request_for

SETTINGS = """
[log]
requests = 0.1
lines_per_second = 100000
"""


async def test_who_gets_a_line(database_url: str, tmp_path: Path) -> None:
    """Of two hundred *good* some twenty have a line, by the memory's way too; of *revoked* and of refusals all have.
    The lines name the certificate and no client.
    """
    async with supervised(database_url, tmp_path, settings=SETTINGS) as up:
        good, revoked = issue("good", up.ca), issue("revoked", up.ca)
        for each in (good, revoked):
            await up.writer.issue(up.authority_id, each.serial_number, actor=ACTOR)
        await up.writer.revoke(up.authority_id, revoked.serial_number, actor=ACTOR)

        async def post(body: bytes) -> OCSPReply:
            headers = {"User-Agent": "a client with a name"}
            async with up.session.post(up.url, data=body, headers=headers) as reply:
                return OCSPReply(reply.status, reply.headers, await reply.read())

        for _ in range(200):
            assert (await post(request_for(good, up.ca))).cert_statuses == ["good"]
        for _ in range(10):
            assert (await post(request_for(revoked, up.ca))).cert_statuses == ["revoked"]
        for _ in range(5):
            assert (await post(b"0\x00")).status == "malformed_request"

        def said(outcome: str) -> list[dict[str, object]]:
            return [line for line in up.log if line["event"] == "request" and line["outcome"] == outcome]

        await up.until(lambda: len(said("malformedRequest")) == 5)
        # The short ways count each for itself.
        assert 18 <= len(said("good")) <= 23
        assert len(said("revoked")) == 10
        asked = f"{up.authority_id}:{revoked.serial_number.hex()}"
        assert {line["certificate"] for line in said("revoked")} == {asked}
        requests = [line for line in up.log if line["event"] == "request"]
        assert len({line["request_id"] for line in requests}) == len(requests)
        for text in ("127.0.0.1", "a client with a name"):
            assert text not in json.dumps(requests)
        (read,) = {line["sha256"] for line in up.log if line["event"] == "configuration read"}
        assert len(str(read)) == 64
