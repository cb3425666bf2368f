"""nsd with the zones of a small mail world, and unbound before it, which validates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.mta.packages import ROOT
from tests.mta.servers import Server, environment, output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RESOLVER, AUTHORITY = "127.66.0.53", "127.66.0.54"
LAME = "127.66.0.55"  #: an authority that serves no zone: it answers REFUSED
LAB = "lab.example"
_HEAD = """\
$TTL 300
@ IN SOA ns.{zone}. hostmaster.{zone}. 1 3600 900 604800 300
@ IN NS ns.{zone}.
ns IN A {authority}
"""


def start(folder: Path, hosts: Mapping[str, str]) -> list[Server]:
    """Serve each of `hosts`, a name with the address of its mail host, as <name>.lab.example with MX mx.<name>."""
    env = environment("dns", folder)
    zones = {
        LAB: _lab(hosts),
        "tenant.example": f"@ MX 10 mx.client.{LAB}.\n",
        "signed.example": _signed(),
        "bogus.example": _signed(),
    }
    for zone, text in zones.items():
        (folder / zone).write_text(_HEAD.format(zone=zone, authority=AUTHORITY) + text)
    anchors = [_sign(zone, env, folder) for zone in ("signed.example", "bogus.example")]
    # A record that its signature does not cover any more.
    signed = (folder / "bogus.example.signed").read_text()
    (folder / "bogus.example.signed").write_text(signed.replace("10 mx.signed", "20 mx.signed"))
    files = {
        LAB: LAB,
        "tenant.example": "tenant.example",
        "signed.example": "signed.example.signed",
        "bogus.example": "bogus.example.signed",
    }

    (folder / "unbound.conf").write_text(
        f'server:\n  interface: {RESOLVER}\n  port: 53\n  access-control: 127.0.0.0/8 allow\n  username: ""\n'
        f'  chroot: ""\n  directory: {folder}\n  pidfile: {folder}/unbound.pid\n  use-syslog: no\n  num-threads: 1\n'
        f'  do-not-query-localhost: no\n  module-config: "validator iterator"\n'
        + "".join(f'  trust-anchor: "{anchor}"\n' for anchor in anchors)
        + "remote-control:\n  control-enable: no\n"
        + "".join(f"stub-zone:\n  name: {zone}\n  stub-addr: {AUTHORITY}\n" for zone in files)
    )
    sbin = ROOT / "dns/usr/sbin"
    servers = {
        AUTHORITY: Server("nsd", [f"{sbin}/nsd", "-d", "-c", _nsd(AUTHORITY, files, folder)], folder, env),
        LAME: Server("nsd-lame", [f"{sbin}/nsd", "-d", "-c", _nsd(LAME, {}, folder)], folder, env),
        RESOLVER: Server("unbound", [f"{sbin}/unbound", "-d", "-c", f"{folder}/unbound.conf"], folder, env),
    }
    for address, server in servers.items():
        server.wait_for((address, 53))
    return list(servers.values())


def _nsd(address: str, zones: Mapping[str, str], folder: Path) -> str:
    """Write the configuration of an authority; return its path."""
    own = folder / address
    own.mkdir()
    lines = [
        "server:", f"  ip-address: {address}@53", "  username: root", '  chroot: ""', f"  zonesdir: {folder}",
        '  database: ""', f"  pidfile: {own}/pid", f"  xfrdfile: {own}/xfrd.state", f"  xfrdir: {own}",
        f"  zonelistfile: {own}/zone.list", "  server-count: 1", "remote-control:", "  control-enable: no",
        *(f"zone:\n  name: {zone}\n  zonefile: {file}" for zone, file in zones.items()),
    ]  # fmt: skip
    (own / "nsd.conf").write_text("\n".join(lines) + "\n")
    return str(own / "nsd.conf")


def _lab(hosts: Mapping[str, str]) -> str:
    lines = [f"{name} MX 10 mx.{name}\nmx.{name} {'AAAA' if ':' in ip else 'A'} {ip}" for name, ip in hosts.items()]
    first = next(iter(hosts))
    lines += [
        "nullmx MX 0 .",
        'txtonly TXT "v=spf1 -all"',
        f"addressonly A {hosts[first]}",
        # More than fits into a datagram of 1,232 octets: the answer comes over TCP.
        *(f"big MX {20 + n} a-mail-exchanger-with-a-long-name-{n:02}.in-many-places" for n in range(39)),
        f"big MX 10 mx.{first}",
        # An authority that answers REFUSED, since it does not know the zone that it was given.
        "lame NS ns.lame",
        f"ns.lame A {LAME}",
        # The client's address 127.0.0.1, and everybody else on loopback, is on this list.
        "*.127.list A 127.0.0.2",
    ]
    return "\n".join(lines) + "\n"


def _signed() -> str:
    return f"@ MX 10 mx.signed.{LAB}.\n"


def _sign(zone: str, env: Mapping[str, str], folder: Path) -> str:
    """Sign the zone file into <zone>.signed, and return its trust anchor."""
    ldns = ROOT / "dns/usr/bin"
    keygen = [f"{ldns}/ldns-keygen", "-k", "-a", "ECDSAP256SHA256", "-r", "/dev/urandom", zone]
    key = output(keygen, env, folder).strip()
    output([f"{ldns}/ldns-signzone", "-o", zone, "-f", f"{zone}.signed", zone, key], env, folder)
    return (folder / f"{key}.ds").read_text().strip().replace("\t", " ")
