"""A real Prometheus, and what its HTTP API says."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.bench_machine import free_port
from support.documented import PAGE
from support.programs import need

_CHECKOUT = Path(__file__).parents[2]
_RULES = _CHECKOUT / "k8s" / "components" / "monitoring" / "rules.yaml"
_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    port: int
    log: Path

    def api(self, path: str, **parameters: str | float) -> Any:  # noqa: ANN401 - whatever the path gives
        """The data of an answer. Raises `AssertionError` with Prometheus' own words when it is an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The value of an expression now."""
        result: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float:
        """Of an expression that has one; 0 when it has none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    def history(self, expression: str, begin: float, end: float, step: float) -> list[dict[str, Any]]:
        """The values of an expression over time."""
        result: list[dict[str, Any]] = self.api("query_range", query=expression, start=begin, end=end, step=step)[
            "result"
        ]
        return result

    def until(self, true: Callable[[], object]) -> None:
        """Wait for it. Raises `AssertionError` with the last lines of the log when it does not come."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not true():
            said = self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"Prometheus never saw it:\n{said}"
            time.sleep(0.2)


def documented_configuration() -> dict[str, Any]:
    """The `prometheus.yml` that docs/metrics.md shows."""
    found = re.search(r"```yaml\n(# prometheus\.yml.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    configuration: dict[str, Any] = yaml.safe_load(found[1])
    return configuration


def moved(configuration: dict[str, Any], ports: Mapping[int, list[int]], every: str) -> dict[str, Any]:
    """The same with other ports (usual one → those here), asked more often."""
    configuration["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), every)
    for job in configuration["scrape_configs"]:
        for static in job["static_configs"]:
            usual = [int(target.rpartition(":")[2]) for target in static["targets"]]
            static["targets"] = [f"127.0.0.1:{port}" for each in usual for port in ports[each]]
    return configuration


def write_rules(folder: Path) -> None:
    """The rules as a file for a Prometheus without its operator, by the command that docs/metrics.md gives."""
    found = re.search(r"^(sed .*) k8s/components/monitoring/rules.yaml > ", PAGE.read_text(), re.MULTILINE)
    assert found is not None
    command = f"{found[1]} '{_RULES}' > lakthan-rules.yml"
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)


@contextmanager
def prometheus(folder: Path, configuration: dict[str, Any]) -> Iterator[Prometheus]:
    """Run one on the loopback until the end of the block; it keeps exemplars."""
    program, port = need("prometheus"), free_port()
    folder.mkdir(exist_ok=True)
    write_rules(folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = [
        str(program),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        here = Prometheus(port, log)
        here.until(lambda: _ready(port, process))
        yield here
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus ended; its log says why"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/-/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
