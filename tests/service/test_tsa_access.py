"""Who may have tokens, and how often: authentication, quotas, and that the default is open to everybody."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lakthan.config import TSAProfileConfig
from lakthan.errors import ConfigError
from support.running import Reply
from support.tsa import Authority, new_unit, request_for, running_tsa, tst_info_of

SECRET, OLD_SECRET, OTHER_SECRET = "s3cret-of-the-hospital", "the-old-one", "s3cret-of-the-ministry"


def entry(name: str, profiles: str, *secrets: str) -> str:
    """A client's table."""
    digests = ", ".join(f'"{hashlib.sha256(secret.encode()).hexdigest()}"' for secret in secrets)
    return f"[{name}]\nsecret_sha256 = [{digests}]\nprofiles = [{profiles}]\n"


CLIENTS = entry("hospital", '"closed"', SECRET, OLD_SECRET) + entry("ministry", '"other"', OTHER_SECRET)
PROFILES = {
    "default": TSAProfileConfig(["main"]),
    "closed": TSAProfileConfig(["main"], authentication="required"),
    "slow": TSAProfileConfig(["main"], requests_per_second=0.01, burst=3),
    "closed-slow": TSAProfileConfig(["main"], authentication="required", requests_per_second=0.01, burst=3),
}


@pytest.fixture
async def authority(database_url: str, tmp_path: Path) -> AsyncIterator[Authority]:
    """An authority with open and closed, quick and slow profiles."""
    credentials = tmp_path / "clients.toml"
    credentials.write_text(CLIENTS)
    async with running_tsa(database_url, tmp_path, new_unit(), profiles=PROFILES, credentials=credentials) as authority:
        yield authority


def basic(user: str, password: str) -> str:
    """An Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def granted(reply: Reply) -> bool:
    """Whether a token came."""
    return reply.http_status == 200 and tst_info_of(reply.body)["version"].native == "v1"


async def test_every_way_to_say_who_one_is(authority: Authority) -> None:
    """A secret is taken as a bearer token, as a password, and as the last part of the path; the old one is good too
    while both are in the file.

    TSA-Q1, TSA-Q13.
    """
    for secret in (SECRET, OLD_SECRET):
        for authorization in (f"Bearer {secret}", f"bearer {secret}", basic("hospital", secret)):
            assert granted(await authority.post(request_for(), path="tsa/closed", Authorization=authorization))
        assert granted(await authority.post(request_for(), path=f"tsa/closed/{secret}"))


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Digest {SECRET}",
        basic("hospital", "wrong"),
        basic("ministry", SECRET),
        basic("", SECRET),
        "Basic not-base64!",
        "Basic ຄວາມລັບ",
        "Basic " + base64.b64encode(SECRET.encode()).decode(),
    ],
)
async def test_strangers(authority: Authority, authorization: str | None) -> None:
    """Who does not say who they are, or says it wrongly, gets 401 and is told how; nothing is stamped.

    TSA-R10, TSA-H2.
    """
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = await authority.post(request_for(), path="tsa/closed", **headers)
    assert reply.http_status == 401
    challenges = reply.headers.getall("WWW-Authenticate")
    assert [challenge.split()[0] for challenge in challenges] == ["Basic", "Bearer"]
    metrics = await authority.metrics()
    assert metrics['lakthan_tsa_http_refusals_total{code="401"}'] == 1
    assert metrics['lakthan_tsa_tokens_total{unit="main"}'] == 0


async def test_a_wrong_secret_in_the_path(authority: Authority) -> None:
    """A path with a wrong secret gets 401, and so does one without any."""
    for path in ("tsa/closed/wrong", "tsa/closed/", "tsa/closed"):
        assert (await authority.post(request_for(), path=path)).http_status == 401


async def test_a_client_of_another_profile(authority: Authority) -> None:
    """A known client that may not use this profile gets 403. TSA-R10, TSA-H2."""
    for headers, path in (({"Authorization": f"Bearer {OTHER_SECRET}"}, ""), ({}, f"/{OTHER_SECRET}")):
        assert (await authority.post(request_for(), path=f"tsa/closed{path}", **headers)).http_status == 403


async def test_open_profiles_ask_nobody(authority: Authority) -> None:
    """Plain HTTP without credentials is served by default; credentials that were not asked for do no harm.

    TSA-H4, TSA-Q1.
    """
    assert granted(await authority.post(request_for()))
    assert granted(await authority.post(request_for(), Authorization="Bearer whatever"))
    assert granted(await authority.post(request_for(), path="tsa/default/whatever"))


@pytest.mark.parametrize("path", ["tsa/slow", "tsa/closed-slow"])
async def test_quota(authority: Authority, path: str) -> None:
    """After its burst a client gets 429 and learns when to come back; the others, and other profiles, go on.

    TSA-H2, TSA-Q7.
    """
    clients = CLIENTS.replace('["closed"]', '["closed-slow"]').replace('["other"]', '["closed-slow"]')
    await changed(authority, clients)
    first = {"Authorization": f"Bearer {SECRET}"}
    replies = [await authority.post(request_for(), path=path, **first) for _ in range(5)]
    assert [reply.http_status for reply in replies] == [200, 200, 200, 429, 429]
    assert int(replies[-1].headers["Retry-After"]) in range(90, 101)
    assert granted(await authority.post(request_for()))
    if path == "tsa/closed-slow":
        assert granted(await authority.post(request_for(), path=path, Authorization=f"Bearer {OTHER_SECRET}"))
        # The old secret is the same client.
        reply = await authority.post(request_for(), path=path, Authorization=f"Bearer {OLD_SECRET}")
        assert reply.http_status == 429


async def test_the_usual_burst(database_url: str, tmp_path: Path) -> None:
    """A build that signs two hundred files at once is not slowed down by the usual burst. TSA-Q7."""
    profiles = {"default": TSAProfileConfig(["main"], requests_per_second=0.01)}
    async with running_tsa(database_url, tmp_path, new_unit(), profiles=profiles) as authority:
        replies = await asyncio.gather(*(authority.post(request_for()) for _ in range(201)))
    assert sorted(reply.http_status for reply in replies) == [200] * 200 + [429]


async def changed(authority: Authority, text: str) -> None:
    """Write the credentials and wait until the service has read them."""
    path = authority.folder / "clients.toml"
    path.write_text(text)
    probe = entry("probe", '"closed"', f"probe {hash(text)}")
    path.write_text(text + probe)
    while (  # noqa: ASYNC110 - the service tells only those who ask
        await authority.post(request_for(), path="tsa/closed", Authorization=f"Bearer probe {hash(text)}")
    ).http_status != 200:
        await asyncio.sleep(0.1)


async def test_clients_come_and_go_without_a_restart(authority: Authority) -> None:
    """Who is taken out of the file is a stranger within seconds, and who is put in is known; a file that is broken
    changes nothing.
    """
    await changed(authority, entry("ministry", '"closed"', OTHER_SECRET))
    reply = await authority.post(request_for(), path="tsa/closed", Authorization=f"Bearer {SECRET}")
    assert reply.http_status == 401
    assert granted(await authority.post(request_for(), path="tsa/closed", Authorization=f"Bearer {OTHER_SECRET}"))
    (authority.folder / "clients.toml").write_text("[hospital")
    await asyncio.sleep(2.5)
    assert granted(await authority.post(request_for(), path="tsa/closed", Authorization=f"Bearer {OTHER_SECRET}"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot be read"),
        ("[hospital", "not as they must be"),
        ('[hospital]\nsecret_sha256 = ["abc"]\nprofiles = ["closed"]', "secret_sha256"),
        ('[hospital]\nsecret_sha256 = []\nprofiles = ["closed"]', "secret_sha256"),
        (entry("hospital", '"closed"', "a") + 'password = "x"', "password"),
        (entry("hospital", '"closed"', "a") + entry("ministry", '"closed"', "a"), "same secret"),
    ],
)
async def test_credentials_that_are_wrong(database_url: str, tmp_path: Path, text: str | None, complaint: str) -> None:
    """A credentials file that is missing or not understood keeps the service from starting."""
    if text is not None:
        (tmp_path / "clients.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        async with running_tsa(
            database_url, tmp_path, new_unit(), profiles=PROFILES, credentials=tmp_path / "clients.toml"
        ):
            pass
