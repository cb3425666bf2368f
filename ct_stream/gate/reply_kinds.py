"""The values in which SMTP replies are read: stages, meanings, a reply and its reading."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """How far the dialogue had come when the answer arrived (RFC 5321 section 4.1)."""

    CONNECT = "connect"
    BANNER = "banner"
    HELO = "helo"
    STARTTLS = "starttls"
    MAIL = "mail"
    RCPT = "rcpt"


class Meaning(StrEnum):
    """The meanings that a decision can rest on."""

    ACCEPT = "accept"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"
    ABOUT_US = "about_us"  #: our address, HELO or sender is refused: says nothing about the company
    OUR_RATE = "our_rate"  #: we ask too fast: says nothing about the company


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server said: the code, the enhanced code (RFC 3463) or "", and the sanitised text."""

    code: int
    enhanced: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A meaning, the rule that gave it, and the cause that a reason can name."""

    meaning: Meaning
    rule: str
    cause: str = ""
    #: It says nothing about the mailbox, only about the session. If other questions came before it in the session, its
    #: question counts as not asked, and is put again over a new connection.
    is_session_limit: bool = False
    is_sender: bool = False  #: it is about our MAIL FROM or its domain, whatever address we come from
