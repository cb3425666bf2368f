"""The soak tells a limit that was broken from a session that its worker cut off, or could not end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ct_stream.local.farm import FarmLog
from ct_stream.local.farm.log import Command
from tests.soak.ways import most_at_once, too_close

if TYPE_CHECKING:
    from collections.abc import Sequence

_REPLY_S = 2.0


def log_of(*sessions: tuple[float, str, Sequence[str]]) -> FarmLog:
    """Return a log of sessions at acme.example: when each was opened, from where, and whom it asked for."""
    log = FarmLog()
    for opened, peer, asked in sessions:
        session = log.open(address="10.77.0.1", host="mx1.acme.example", domain="acme.example", peer=peer)
        session.opened = session.wall = opened
        at = opened
        for name in asked:
            text = f"RCPT TO:<{name}@acme.example>"
            session.commands.append(Command(read_at=at, at=at + _REPLY_S, text=text, reply="550 5.1.1 No"))
            at += _REPLY_S
        session.commands.append(Command(read_at=at, at=at + _REPLY_S, text="QUIT", reply="221 2.0.0 Bye"))
    return log


def never(_peer: str, _begin: float, _end: float) -> bool:
    return False


@pytest.mark.parametrize("peer", ["10.78.1.1", "10.78.1.2"], ids=["the same worker", "another one"])
@pytest.mark.parametrize(("after_s", "pairs"), [(2.0, 0), (1.0, 1)], ids=["after the pause", "too soon"])
def test_a_session_comes_after_the_pause_whoever_had_the_one_before(peer: str, after_s: float, pairs: int) -> None:
    log = log_of((0.0, "10.78.1.1", ["first"]), (_REPLY_S + after_s, peer, ["last"]))
    assert len(too_close(log, 2.0, never)) == pairs


def test_a_session_that_was_cut_off_ended_when_its_last_question_was_put_at_the_earliest() -> None:
    assert not too_close(log_of((0.0, "10.78.1.1", ["first"]), (_REPLY_S + 0.5, "10.78.1.2", ["first"])), 2.0, never)
    assert too_close(log_of((0.0, "10.78.1.1", ["first"]), (1.0, "10.78.1.2", ["first"])), 2.0, never)


def test_a_worker_whose_packets_vanish_cannot_end_its_sessions() -> None:
    log = log_of((0.0, "10.78.1.1", ["first"]), (1.0, "10.78.1.2", ["first"]))
    assert not too_close(log, 2.0, lambda peer, *_: peer == "10.78.1.1")
    assert too_close(log, 2.0, lambda peer, *_: peer == "10.78.1.2")


def test_sessions_at_one_time_are_counted_over_all_addresses() -> None:
    asked = ["first", "last"]
    log = log_of((0.0, "10.78.1.1", asked), (1.0, "10.78.1.2", asked), (3.5, "10.78.1.3", asked))
    assert most_at_once(log, "mx1.acme.example", never) == 2
    assert most_at_once(log, "mx1.acme.example", lambda peer, *_: peer == "10.78.1.1") == 1
