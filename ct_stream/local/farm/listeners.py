"""Where do the farm's mail servers listen? On one address for each MX host, all on one port."""

import asyncio
import ctypes
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from ct_stream.local.farm.faults import SmtpBlock
from ct_stream.local.farm.names import MxHost
from ct_stream.local.farm.networks import Networks
from ct_stream.local.farm.scenarios import Reach

_BACKLOG = 1024
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SO_DETACH_FILTER = 27
_BPF_RETURN_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0 bytes: the packet is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address and the MX host behind it; more than one host when `is_shared`."""

    address: str
    host: MxHost
    is_shared: bool


Talk = Callable[[Endpoint, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listeners:
    """Give each MX host an address when its name is first resolved, and listen there.

    After `own_addresses` hosts, those of one scenario share an address: 20,000 companies need few sockets. Not hosts
    that refuse us: to the gate those of several companies at one address are one hoster's machine (ADR-CT-IMO-028). For
    the same reason each next address is in another network.
    """

    def __init__(self, talk: Talk, own_addresses: int, networks: Networks) -> None:
        self._talk = talk
        self._networks = networks
        self._own_addresses = own_addresses
        self._endpoints: dict[tuple[int, str], Endpoint] = {}  # by version of IP and name
        self._listening: dict[str, tuple[Endpoint, socket.socket, asyncio.Task[asyncio.Server]]] = {}
        self._block: SmtpBlock | None = None
        self._used = 0
        self.port = 0

    def start(self, home: Endpoint) -> None:
        """Choose the port, and listen at `home`: an address that no careful client connects to."""
        self._endpoints[4, home.host.name] = home
        self._listen(home)

    def addresses_of(self, host: MxHost) -> tuple[str, ...]:
        """Return the addresses of an MX host; from now on somebody listens there."""
        if host.mx.addresses:
            return host.mx.addresses
        versions = [version for version in host.mx.versions if version == 4 or self._networks.v6 is not None]
        return tuple(self._listening_for(host, version).address for version in versions)

    def set_block(self, block: SmtpBlock | None) -> None:
        """Stop new connections to all addresses, or let them in again."""
        self._block = block
        for endpoint, sock, _ in list(self._listening.values()):
            if block is SmtpBlock.REFUSED:
                self._close(endpoint.address)
            else:
                _set_dropping(sock, block is SmtpBlock.TIMEOUT or endpoint.host.mx.reach is Reach.DROPPED)
        if block is not SmtpBlock.REFUSED:
            for endpoint in self._endpoints.values():
                if endpoint.address not in self._listening and endpoint.host.mx.reach is not Reach.REFUSED:
                    self._listen(endpoint)

    async def stop(self) -> None:
        """Close all listening sockets."""
        for address in list(self._listening):
            _, _, server = self._listening.pop(address)
            (await server).close()

    def _listening_for(self, host: MxHost, version: int) -> Endpoint:
        endpoint = self._endpoints.get((version, host.name))
        if endpoint is None:
            endpoint = self._endpoints[version, host.name] = self._endpoint(host, version)
            if endpoint.address not in self._listening and host.mx.reach is not Reach.REFUSED:
                self._listen(endpoint)
        return endpoint

    def _endpoint(self, host: MxHost, version: int) -> Endpoint:
        if host.address is not None:
            return Endpoint(address=host.address, host=host, is_shared=True)
        if host.is_shared or host.scenario.refuses_us or self._used < self._own_addresses:
            return Endpoint(address=self._next_address(version), host=host, is_shared=host.is_shared)
        key = version, f"{host.scenario.name} {host.mx.label}"
        if key not in self._endpoints:
            self._endpoints[key] = Endpoint(address=self._next_address(version), host=host, is_shared=True)
        return self._endpoints[key]

    def _next_address(self, version: int) -> str:
        address = self._networks.address(version, self._used)
        self._used += 1
        return address

    def _listen(self, endpoint: Endpoint) -> None:
        # SO_REUSEADDR is set by create_server: an address can be opened again after a fault.
        if self._block is SmtpBlock.REFUSED:
            return
        family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
        sock = socket.create_server((endpoint.address, self.port), family=family, backlog=_BACKLOG)
        self.port = sock.getsockname()[1]
        _set_dropping(sock, self._block is SmtpBlock.TIMEOUT or endpoint.host.mx.reach is Reach.DROPPED)

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._talk(endpoint, reader, writer)

        # From here on the kernel accepts; the task hands over what has come meanwhile.
        server = asyncio.create_task(asyncio.start_server(talk, sock=sock, backlog=_BACKLOG))
        self._listening[endpoint.address] = (endpoint, sock, server)

    def _close(self, address: str) -> None:
        _, sock, server = self._listening.pop(address)
        if server.done():
            server.result().close()
        else:
            server.cancel()
            sock.close()


def _set_dropping(sock: socket.socket, dropping: bool) -> None:
    """Let the kernel drop the SYNs of new connections, as a firewall does; a full backlog would only delay them."""
    if dropping:
        program = ctypes.create_string_buffer(_BPF_RETURN_NOTHING, len(_BPF_RETURN_NOTHING))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))
    else:
        with suppress(FileNotFoundError):  # it had none
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
