"""nginx and Apache with TLS for https://localhost, as processes of their own that a test starts and stops.

The certificates name the demo's responder; that is all that a server is told about where to get what it staples.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.programs import need

APACHE_MODULES = Path("/usr/lib/apache2/modules")
START_SECONDS = 20.0

# One process without a master, so that there is one to stop. Nothing is written outside the folder.
NGINX = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/chain.pem;
    ssl_certificate_key {key};
    ssl_trusted_certificate {folder}/trusted.pem;
    ssl_stapling {staples};
    ssl_stapling_verify {staples};
    location / {{ return 200 "hello\\n"; }}
  }}
}}
"""
# The user is who a server that root starts becomes; others stay who they are.
APACHE = """\
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/pid
DefaultRuntimeDir {folder}
ErrorLog {folder}/error.log
User nobody
Group nogroup
LoadModule mpm_prefork_module {modules}/mod_mpm_prefork.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule socache_shmcb_module {modules}/mod_socache_shmcb.so
LoadModule ssl_module {modules}/mod_ssl.so
SSLUseStapling {staples}
SSLStaplingCache shmcb:{folder}/stapling(32768)
SSLEngine on
SSLCertificateFile {folder}/chain.pem
SSLCertificateKeyFile {key}
"""


@dataclass(frozen=True)
class WebServer:
    """A running server on `port` of the loopback interface. `folder`: its configuration and its error log."""

    port: int
    folder: Path

    @property
    def errors(self) -> str:
        """What it has logged so far."""
        return (self.folder / "error.log").read_text()


@contextmanager
def serving(
    program: str, folder: Path, *, pki: Path, authority: str, name: str, staples: bool = True
) -> Iterator[WebServer]:
    """Run `nginx` or `apache2` in `folder` with a certificate and key of the demo, stopped at the end.

    `authority`: the folder of the CA below `pki`; `name`: the certificate's, without suffix. `staples`: whether the
    server asks for the status of its certificate and staples the answer.
    """
    executable = need(program)
    folder.mkdir()
    own, ca, root = (path.read_bytes() for path in _chain(pki, authority, name))
    (folder / "chain.pem").write_bytes(own + ca)
    (folder / "trusted.pem").write_bytes(ca + root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    template, arguments = (NGINX, ("-c",)) if program == "nginx" else (APACHE, ("-X", "-f"))
    (folder / "server.conf").write_text(
        template.format(
            folder=folder,
            port=port,
            key=(pki / authority / f"{name}.key").resolve(),
            modules=APACHE_MODULES,
            staples="on" if staples else "off",
        )
    )
    command = [executable, *arguments, folder / "server.conf"]
    with (folder / "printed").open("wb") as printed:
        process = subprocess.Popen(command, cwd=folder, stdout=printed, stderr=subprocess.STDOUT)
    try:
        _wait(process, port, folder)
        yield WebServer(port, folder)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _chain(pki: Path, authority: str, name: str) -> Sequence[Path]:
    return pki / authority / f"{name}.pem", pki / authority / "ca.pem", pki / "root.pem"


def _wait(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        told = (folder / "printed").read_text()
        assert process.poll() is None, f"the server ended:\n{told}"
        assert time.monotonic() < deadline, f"the server does not listen:\n{told}"
        time.sleep(0.05)
