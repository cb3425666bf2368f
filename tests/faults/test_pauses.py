"""What the servers' logs say about pauses must be true of the client, however late their loop is."""

from __future__ import annotations

import pytest

from ct_stream.local.farm.log import Command, Session
from tests.faults.pauses import pauses


def session(opened: float, *commands: tuple[float, float, str], closed: float, ended_by: str = "client") -> Session:
    return Session(
        id=0, address="127.0.0.1", host="mx1.acme.example", domain="acme.example", opened=opened, wall=0.0,
        closed=closed, ended_by=ended_by,
        commands=[Command(read_at=read_at, at=at, text=text, reply="250 Ok") for read_at, at, text in commands],
    )  # fmt: skip


GREETED = (10.0, 10.0, "")
RCPT = (10.1, 10.2, "RCPT TO:<info@acme.example>")
NEXT = session(12.25, (12.25, 12.25, ""), RCPT, closed=13.0)


@pytest.mark.parametrize(
    ("first", "pause_s"),
    [
        pytest.param(session(10.0, GREETED, RCPT, closed=10.9, ended_by="server"), 2.05, id="the server went"),
        pytest.param(session(10.0, GREETED, RCPT, (10.25, 10.3, "QUIT"), closed=10.3), 2.0, id="QUIT"),
        pytest.param(session(10.0, GREETED, RCPT, (10.21, 10.3, "QUIT"), closed=10.3), 2.04, id="QUIT and gone"),
        pytest.param(session(10.0, GREETED, RCPT, closed=10.9), 2.05, id="gone without QUIT"),
        pytest.param(session(10.0, GREETED, RCPT, closed=12.3), 0.0, id="two at a time"),
    ],
)
def test_the_pause_counts_from_the_last_sign_of_the_client(first: Session, pause_s: float) -> None:
    assert list(pauses([NEXT, first])) == [pytest.approx(pause_s)]
