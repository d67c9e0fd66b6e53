"""The clients of the rehearsals do not wait in silence: what stalls a rehearsal is named, at once if possible."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support import estate_clients
from support.estate import Estate
from support.service_process import ServiceProcess


@pytest.fixture
def estate(tmp_path: Path) -> Estate:
    """An estate of two certificates, without a database: nobody serves."""
    estate = Estate(tmp_path, lambda _: "postgresql://nobody@/nowhere")
    estate.config.touch()
    estate.serial_numbers = [1, 2]
    estate.again(1)
    return estate


@pytest.fixture
def service(estate: Estate) -> ServiceProcess:
    """A service whose process ends as soon as it is started: it does not know --config."""
    log = estate.folder / "log"
    log.touch()
    return ServiceProcess("json.tool", estate.config, log)


async def test_a_client_that_ended_is_named_at_once(estate: Estate, service: ServiceProcess) -> None:
    """A relying party that cannot read what it is told ends: nobody waits for it until patience runs out."""

    async def say_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nnonsense")
        writer.close()

    async with await asyncio.start_server(say_nonsense, "127.0.0.1") as server:
        service.port = server.sockets[0].getsockname()[1]
        with pytest.raises(AssertionError, match="the relying party has ended by itself") as caught:
            async with estate.at_work(responders={"responder": service}) as clients:
                await clients.until(heard=1)
        assert isinstance(caught.value.__cause__, ValueError)


async def test_a_service_that_ended_is_named_at_once(estate: Estate, service: ServiceProcess) -> None:
    """With its exit code, and what it said last."""
    service.start()
    while service.running:  # noqa: ASYNC110 - a process makes it true
        await asyncio.sleep(0.01)
    service.port = 1
    with pytest.raises(AssertionError, match="registry ended by itself with 2") as caught:
        async with estate.at_work(registry=service, responders={}) as clients:
            await clients.until(revoked=1)
    assert "unrecognized arguments: --config" in str(caught.value)


async def test_what_is_below_the_services_is_watched(estate: Estate) -> None:
    """What all of them need tells of its own end."""

    def below() -> None:
        raise AssertionError("the copy of the log has ended")

    with pytest.raises(AssertionError, match="the copy of the log has ended"):
        async with estate.at_work(responders={}, below=below) as clients:
            await clients.until(revoked=1)


async def test_patience_that_ran_out_says_what_is_missing(
    estate: Estate, service: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of each kind, what each client was told last, and the last words of the services."""
    service.port = 1
    async with estate.at_work(registry=service, tsa=[service], responders={}) as clients:
        clients.allow(1)
        while "registry" not in estate.books.latest or not estate.books.tokens.refused:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        monkeypatch.setattr(estate_clients, "_PATIENCE_SECONDS", -1.0)
        with pytest.raises(AssertionError) as caught:
            await clients.until(revoked=1, tokens=2)
    told = str(caught.value)
    assert "revocations: 0 of 1, the latest " in told
    assert "tokens: 0 of 2, the latest " in told
    assert "ClientConnectorError: Cannot connect to host 127.0.0.1:1" in told
    assert "(nobody there)" in told
    assert "registry (not running, exit code None) logged last:" in told
