"""What does one SMTP reply say: accept, reject, inconclusive, or something about us?

The code, the enhanced code and the words all count: a 5xx alone is not a reject. The rules are data, in `reply_rules`.
A reply that none of them knows is inconclusive, because a wrong reject loses a company for ever.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from ct_stream.gate.reply_kinds import Meaning, Reading, Reply, Stage
from ct_stream.gate.reply_rules import RULES, Rule

__all__ = ["Meaning", "Reading", "Reply", "Stage", "deciding_rule", "fold", "read_reply"]

_MAX_CHARS = 512  #: of a text that are read, the last of them from its end; the SMTP driver keeps no more
_MAX_TAIL_CHARS = 180
#: How the SMTP driver keeps a byte that is not UTF-8. Servers that send one nearly always write Latin-1.
_BAD_BYTE = re.compile(r"\\x([a-f][0-9a-f])")
#: Letters that Unicode does not take apart into a letter and an accent.
_NO_ACCENT = str.maketrans("ıłŁøØđĐ", "ilLoOdD")
_MAIL_ADDRESS = re.compile(r"<?[^\s<>\[\]():,;@]{1,128}@[^\s<>\[\](),;:]+>?")
#: RFC 3463 section 2. Searched for anywhere in the text if the server put none in front: "(#5.1.1)", "cuda_nsu 5.1.1".
_ENHANCED = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.]*\d)")

#: The sender that is a machine: its address is meant.
_SENDING_HOST = re.compile(r"\bsender (?:host|ip|server)\b")


def read_reply(stage: Stage, reply: Reply) -> Reading:
    """Return what `reply` means at `stage`; inconclusive unless a rule says otherwise.

    A 4xx is never a reject, and a 5xx alone is not one.
    """
    rule = deciding_rule(stage, reply)
    return Reading(
        meaning=rule.meaning,
        rule=rule.name,
        cause=rule.cause,
        is_session_limit=rule.is_session_limit,
        is_sender=rule.is_sender and _SENDING_HOST.search(fold(reply.text)) is None,
    )


def deciding_rule(stage: Stage, reply: Reply) -> Rule:
    """Return the first rule that holds; the last one always does."""
    text = fold(reply.text)
    return _deciding_rule(stage, reply.code, _enhanced(reply, text), text)


# A server says the same of each mailbox except for the address, which folding removes. So the 9 replies of a company
# cost one look at the rules. The cache takes a few hundred kilobytes at most.
@lru_cache(maxsize=1024)
def _deciding_rule(stage: Stage, code: int, enhanced: str, text: str) -> Rule:
    return next(rule for rule in RULES if rule.holds(stage, code, enhanced, text))


def fold(text: str) -> str:
    """Return `text` as the rules read it: lower case, no accents, one line, "@" for each mail address.

    An address is the one we asked about or our own sender. Its letters say nothing, and may spell any word.
    """
    plain = text
    if len(plain) > _MAX_CHARS:
        plain = f"{plain[: _MAX_CHARS - _MAX_TAIL_CHARS]} [...] {plain[-_MAX_TAIL_CHARS:]}"
    if "\\x" in plain:
        plain = _BAD_BYTE.sub(lambda byte: chr(int(byte[1], 16)), plain)
    if not plain.isascii():
        apart = unicodedata.normalize("NFKD", plain)
        # Composed again, because decomposed Korean syllables match no pattern.
        plain = unicodedata.normalize("NFC", "".join(char for char in apart if not unicodedata.combining(char)))
        plain = plain.translate(_NO_ACCENT)
    return " ".join(_MAIL_ADDRESS.sub(" @ ", plain.casefold().replace("\u2019", "'")).split())


def _enhanced(reply: Reply, text: str) -> str:
    """Return the enhanced code if its class is the reply code's (RFC 3463 section 2), else ""."""
    given = reply.enhanced.strip().lstrip("#")
    if not given:
        found = _ENHANCED.search(text)
        given = found[1] if found else ""
    return given if given[:1] == str(reply.code)[:1] else ""
