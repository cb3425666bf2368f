"""A network whose every host answers a TCP SYN with the ICMP message that its address names, and what our driver says.

Run under `unshare --net`: prints one JSON object, "type/code" to the trouble that the driver found. The host of type t
and code c is 198.18.t.c (RFC 2544's test network); a TUN device gives us its packets.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import struct
import subprocess

from ct_stream.probes.smtp import SmtpSession, SmtpSettings
from ct_stream.probes.stopwatch import Stopwatch

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
#: RFC 792 and 1812: unreachable (all codes, and one that is not assigned), time exceeded, parameter problem.
MESSAGES = [*((3, code) for code in range(17)), (11, 0), (11, 1), (12, 0), (12, 1), (12, 2), (12, 9)]


def open_tun() -> int:
    """Return a TUN device that is up, with a route to all hosts of the test network."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"icmp0", _IFF_TUN | _IFF_NO_PI))
    for words in (
        "link set lo up",
        "addr add 198.19.0.1/32 dev icmp0",
        "link set icmp0 up",
        "route add 198.18.0.0/16 dev icmp0",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return device


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def answer(packet: bytes) -> bytes | None:
    """Return the ICMP message that answers a TCP segment; None for anything else."""
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    source, target = packet[12:16], packet[16:20]
    quoted = packet[:28]
    body = struct.pack("!BBHI", target[2], target[3], 0, 0) + quoted
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, socket.IPPROTO_ICMP, 0, target, source)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


async def found(kind: int, code: int) -> str:
    """Return what our driver makes of a host that answers so."""
    settings = SmtpSettings(helo="probe.example.com", mail_from="probe@example.com", connect_s=2.0)
    session = SmtpSession("mx.example", f"198.18.{kind}.{code}", settings, Stopwatch(5.0))
    attempt = await session.greet()
    assert attempt is not None
    return str(attempt.trouble)


async def main() -> None:
    """Answer and ask."""
    device = open_tun()

    def answered() -> None:
        reply = answer(os.read(device, 2048))
        if reply is not None:
            os.write(device, reply)

    asyncio.get_running_loop().add_reader(device, answered)
    told = await asyncio.gather(*(found(*message) for message in MESSAGES))
    print(json.dumps({f"{kind}/{code}": trouble for (kind, code), trouble in zip(MESSAGES, told, strict=True)}))


if __name__ == "__main__":
    asyncio.run(main())
