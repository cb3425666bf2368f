"""The servers of tests/mta, started once; and the product, which asks them as a person would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import trustme

from ct_stream.local.processes import free_port
from tests.mta import dns, exim, postfix
from tests.mta.packages import CannotRun, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mta.servers import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Real mail servers and resolvers on loopback."""

    folder: Path
    port: int

    def check(self, domain: str, **settings: str) -> dict[str, Any]:
        """Return what `ct-stream check DOMAIN --json` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "ct_stream", "check", domain, "--json"],
            env=self.env | settings, capture_output=True, check=False, timeout=150,
        )  # fmt: skip
        assert done.returncode in (0, 1, 2), done.stderr.decode()
        answer: dict[str, Any] = orjson.loads(done.stdout)
        return answer

    @property
    def env(self) -> dict[str, str]:
        """Return the settings that lead to these servers."""
        return {name: value for name, value in os.environ.items() if not name.startswith("CT_")} | {
            "CT_DNS_SERVERS": f"{dns.RESOLVER}:53",
            "CT_SMTP_PORT": str(self.port),
            "CT_SMTP_ALLOW_CIDRS": "127.66.0.0/16,::1/128",
            "CT_SMTP_HELO": f"gate.{dns.LAB}",
            "CT_SMTP_MAIL_FROM": f"probe@gate.{dns.LAB}",
            "CT_CONTROL_DOMAINS": f"control.{dns.LAB}=control.{dns.LAB}",
            "CT_CONTROL_CA_FILE": str(self.folder / "authority.pem"),
        }

    def log(self, path: str) -> str:
        """Return what a server has logged."""
        return (self.folder / path).read_text(errors="replace")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    try:
        unpacked()
    except CannotRun as reason:
        pytest.exit(str(reason), returncode=1)
    # Not below pytest's folder: the servers' own users may not enter it.
    folder = Path(tempfile.mkdtemp(prefix="ct-stream-mta-"))
    folder.chmod(0o755)
    servers: list[Server] = []
    try:
        for name in ("dns", "postfix", "exim"):
            (folder / name).mkdir()
        certificate = folder / "certificate.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "authority.pem")
        names = [f"mx.{name}.{dns.LAB}" for name in ("plain", "control", "client")]
        authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(certificate)
        port = free_port()
        hosts = {name: listener.ip for name, listener in postfix.LISTENERS.items()}
        # Our own domain, which servers look up: Exim wants it to lead out of this machine. Nobody connects there.
        hosts["gate"] = "198.51.100.25"
        hosts |= {"signed": hosts["plain"], "control": hosts["plain"], "exim": exim.IP}
        servers += dns.start(folder / "dns", hosts)
        servers += postfix.start(folder / "postfix", port, dns.RESOLVER, certificate)
        servers.append(exim.start(folder / "exim", port, dns.RESOLVER, certificate))
        yield Lab(folder=folder, port=port)
    finally:
        for server in reversed(servers):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
