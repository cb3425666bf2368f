"""Where do the farm's mail servers listen? On one loopback address for each MX host, all on one port."""

import asyncio
import ctypes
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from ct_stream.local.farm.faults import SmtpBlock
from ct_stream.local.farm.names import MxHost
from ct_stream.local.farm.scenarios import Reach
from ct_stream.local.processes import LocalError

_BACKLOG = 1024
_NETWORKS = 250  #: 127.77.0.0/24 to 127.77.249.0/24; those above are for hosters' machines
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

    def __init__(self, talk: Talk, own_addresses: int) -> None:
        self._talk = talk
        self._own_addresses = own_addresses
        self._endpoints: dict[str, Endpoint] = {}
        self._listening: dict[str, tuple[Endpoint, socket.socket, asyncio.Task[asyncio.Server]]] = {}
        self._block: SmtpBlock | None = None
        self._used = 0
        self.port = 0

    def start(self, home: Endpoint) -> None:
        """Choose the port, and listen at `home`: an address that no careful client connects to."""
        self._endpoints[home.host.name] = home
        self._listen(home)

    def addresses_of(self, host: MxHost) -> tuple[str, ...]:
        """Return the addresses of an MX host; from now on somebody listens there."""
        if host.mx.addresses:
            return host.mx.addresses
        endpoint = self._endpoints.get(host.name)
        if endpoint is None:
            endpoint = self._endpoint(host)
            self._endpoints[host.name] = endpoint
            if endpoint.address not in self._listening and host.mx.reach is not Reach.REFUSED:
                self._listen(endpoint)
        return (endpoint.address,)

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

    def _endpoint(self, host: MxHost) -> Endpoint:
        if host.address is not None:
            return Endpoint(address=host.address, host=host, is_shared=True)
        if host.is_shared or host.scenario.refuses_us or self._used < self._own_addresses:
            return Endpoint(address=self._next_address(), host=host, is_shared=host.is_shared)
        key = f"{host.scenario.name} {host.mx.label}"
        if key not in self._endpoints:
            self._endpoints[key] = Endpoint(address=self._next_address(), host=host, is_shared=True)
        return self._endpoints[key]

    def _next_address(self) -> str:
        fourth, third = divmod(self._used, _NETWORKS)
        if fourth > 250:
            raise LocalError("127.77.0.0/16 is used up; start the farm with fewer addresses of their own")
        self._used += 1
        return f"127.77.{third}.{fourth + 1}"

    def _listen(self, endpoint: Endpoint) -> None:
        # SO_REUSEADDR is set by create_server: an address can be opened again after a fault.
        if self._block is SmtpBlock.REFUSED:
            return
        sock = socket.create_server((endpoint.address, self.port), backlog=_BACKLOG)
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
