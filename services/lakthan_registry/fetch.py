"""One GET of a CRL over HTTP, careful with whoever answers.

Promises: no more than `most_octets` are ever kept, in an unnamed file and not in memory; a few redirects are followed,
never from https to http and never to another kind of URL; an answer of "not modified" costs no transfer, and counts
from a server that was asked for it only. Compressed answers are not unpacked: nobody asks for them, and a few octets
could become very many.

Trusted: nothing of what comes. TLS is verified where the URL is https, but it is the CRL's signature that counts, and
whoever imports looks at that.
"""

from __future__ import annotations

import asyncio
import mmap
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from lakthan.errors import ConfigError, LakthanError
from lakthan_registry.crl_url import check_crl_url

if TYPE_CHECKING:
    from typing import BinaryIO

MOST_OCTETS = 256 * 1024 * 1024  # some six million entries
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=10, sock_read=30)


class FetchFailed(LakthanError):
    """Nothing was got. The message says from where and why."""


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server is asked with whether there is anything new (RFC 9110 §13.1)."""

    etag: str | None = None
    last_modified: str | None = None

    def headers(self) -> dict[str, str]:
        """The conditional headers."""
        headers = {"Accept-Encoding": "identity"}
        if self.etag is not None:
            headers["If-None-Match"] = self.etag
        if self.last_modified is not None:
            headers["If-Modified-Since"] = self.last_modified
        return headers


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came: the octets, mapped from a file that has no name, and what to ask with the next time."""

    octets: mmap.mmap
    validators: Validators


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    validators: Validators,
    *,
    most_octets: int = MOST_OCTETS,
    timeout: aiohttp.ClientTimeout = _TIMEOUT,  # noqa: ASYNC109  # of the client, not of this coroutine
) -> Fetched | None:
    """GET `url`; None when the server says that nothing has changed. Raises `FetchFailed`."""
    try:
        return await _follow(session, url, validators, most_octets, timeout)
    except TimeoutError as error:
        raise FetchFailed(f"{url}: no answer in time") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchFailed(f"{url}: {str(error) or type(error).__name__}") from error


async def _follow(
    session: aiohttp.ClientSession,
    url: str,
    validators: Validators,
    most_octets: int,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
) -> Fetched | None:
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            check_crl_url(url)
        except ConfigError as error:
            raise FetchFailed(str(error)) from error
        async with session.get(
            URL(url, encoded=True),
            headers=validators.headers(),
            allow_redirects=False,
            auto_decompress=False,
            timeout=timeout,
        ) as reply:
            if reply.status == 304 and validators != Validators():
                return None
            if reply.status == 200:
                coding = reply.headers.get("Content-Encoding", "identity")
                if coding.lower() != "identity":
                    raise FetchFailed(f"{url}: the answer is compressed ({coding}), which nobody asked for")
                found = Validators(reply.headers.get("ETag"), reply.headers.get("Last-Modified"))
                return Fetched(await _body(reply, url, most_octets), found)
            if reply.status not in _REDIRECTS or "Location" not in reply.headers:
                raise FetchFailed(f"{url}: HTTP {reply.status} {reply.reason}")
            target = urljoin(url, reply.headers["Location"])
        if url.lower().startswith("https:") and target.lower().startswith("http:"):
            raise FetchFailed(f"{url}: redirected from https to {target}, which is not followed")
        url = target
    raise FetchFailed(f"{url}: more than {_MOST_REDIRECTS} redirects")


async def _body(reply: aiohttp.ClientResponse, url: str, most_octets: int) -> mmap.mmap:
    too_long = f"{url}: more than {most_octets} octets, which is too long for a CRL"
    if (reply.content_length or 0) > most_octets:
        raise FetchFailed(too_long)
    with tempfile.TemporaryFile() as file:
        size = 0
        async for chunk in reply.content.iter_chunked(1 << 18):
            size += len(chunk)
            if size > most_octets:
                raise FetchFailed(too_long)
            await asyncio.to_thread(file.write, chunk)
        if not size:
            raise FetchFailed(f"{url}: the answer is empty")
        return map_file(file)


def map_file(file: BinaryIO) -> mmap.mmap:
    """The file's content without a copy in memory; good after the file is closed. Raises `ValueError` when empty."""
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
