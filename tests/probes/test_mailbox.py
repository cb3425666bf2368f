"""How does a pass reach a company's servers, and what does it cost?"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from ct_stream.gate.patterns import Address
from ct_stream.gate.providers import provider_at
from ct_stream.gate.questions import Attempt, ControlKind, MailboxAnswer, Trouble
from ct_stream.gate.replies import Stage
from ct_stream.gate.verdicts import Held, HeldBy
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.probes.mailbox import MailboxProber
from ct_stream.probes.mx import NameTrouble
from ct_stream.probes.needs import Met
from ct_stream.probes.smtp import SmtpSettings
from ct_stream.probes.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.probes.conftest import Dialogue, MailFarm, SmtpServer

NO = "550 5.1.1 User unknown"
YES = "250 2.1.5 ok"
MX1, MX2, MX3, MX4 = "mx1.acme.example", "mx2.acme.example", "mx3.acme.example", "mx4.acme.example"
CAPPED = Wait(reason=WaitReason.DAILY_CAP, detail="scripted")


class Permits:
    """Leases without limits that write down what is taken and given back."""

    def __init__(self, *, begin: Wait | None = None, waits_at: int = -1) -> None:
        self.log: list[str] = []
        self.refused: Sequence[Held] = ()
        self.met: Mapping[str, Met] = {}
        self.greeted_at: Mapping[str, str] = {}
        self.closed: set[str] = set()  #: networks
        self.closed_to: dict[str, Wait] = {}  #: providers
        self.greetings: list[float] = []
        self.lacking: dict[ControlKind, Wait] = {}
        self._begin = begin
        self._sessions_left = waits_at

    def lacks(self, kind: ControlKind) -> Wait | None:
        return self.lacking.get(kind)

    def cut_off(self, detail: str) -> Wait:
        raise AssertionError(f"a prober looks up no MX: {detail}")

    async def mx_lookup(self) -> Wait | None:
        raise AssertionError("a prober looks up no MX")

    def provider_at(self, host: str, ip: str, domain: str) -> str:
        return provider_at(host, ip, domain, self.closed)

    async def begin_probe(self, domain: str, provider: str) -> Permits | Wait:
        self.log.append(f"begin {domain} {provider}")
        return self._begin or self

    async def next_session(self) -> Wait | None:
        if self._sessions_left == 0:
            return CAPPED
        self._sessions_left -= 1
        self.log.append("session")
        return None

    def session_ended(self) -> None:
        self.log.append("ended")

    def greeted(self, begun_at: float, ip: str) -> None:  # noqa: ARG002
        self.greetings.append(begun_at)

    async def enter(self, provider: str) -> Wait | None:
        self.log.append(f"enter {provider}")
        return self.closed_to.get(provider)

    async def release(self, *, met: Mapping[str, Met], greeted_at: Mapping[str, str], refused: Sequence[Held]) -> None:
        self.log.append("greeted" if Met.GREETED in met.values() else "not greeted")
        self.met, self.greeted_at, self.refused = met, greeted_at, refused


class Names:
    """Host names with their addresses; another name fails the test."""

    def __init__(self, **hosts: tuple[str, ...] | NameTrouble) -> None:
        self.hosts = {f"{host}.acme.example": found for host, found in hosts.items()}
        self.asked: list[str] = []

    async def lookup_addresses(self, host: str) -> tuple[str, ...] | NameTrouble:
        self.asked.append(host)
        return self.hosts[host]


def prober(
    farm: MailFarm,
    names: Names,
    permits: Permits,
    *,
    deadline_s: float = 5.0,
    command_s: float = 1.0,
    stopwatch: Stopwatch | None = None,
) -> MailboxProber:
    settings = SmtpSettings(
        helo="gate.example",
        mail_from="probe@gate.example",
        port=farm.port,
        connect_s=0.5,
        command_s=command_s,
        quit_s=0.05,
    )
    watch = stopwatch or Stopwatch(deadline_s)
    return MailboxProber(resolver=names, permits=permits, settings=settings, stopwatch=watch)


async def ask(asker: MailboxProber, local_part: str, *hosts: str) -> MailboxAnswer:
    answer = await asker.ask(Address(local_part=local_part, domain="acme.example"), hosts or (MX1,))
    assert isinstance(answer, MailboxAnswer)
    return answer


def ends(answer: MailboxAnswer) -> list[tuple[str, Stage, Trouble | int | None]]:
    return [(a.host[:3], a.stage, a.reply.code if a.reply else a.trouble) for a in answer.attempts]


async def test_all_questions_go_over_one_session(farm: MailFarm) -> None:
    locals_ = [f"p{n}" for n in range(9)]
    server = await farm.server(farm.hello(*(farm.rcpt(name, NO) for name in locals_)))
    permits = Permits()
    asker = prober(farm, Names(mx1=(server.ip,)), permits)
    for name in locals_:
        assert ends(await ask(asker, name)) == [("mx1", Stage.RCPT, 550)]
    await asker.close()
    assert server.connections == 1
    assert permits.log == ["begin acme.example acme.example", "session", "ended", "greeted"]


async def test_after_nine_questions_the_session_is_over(farm: MailFarm) -> None:
    locals_ = [f"p{n}" for n in range(10)]
    first: Dialogue = farm.hello(*(farm.rcpt(name, NO) for name in locals_[:9]))
    server = await farm.server(first, farm.hello(farm.rcpt("p9", NO)))
    permits = Permits()
    asker = prober(farm, Names(mx1=(server.ip,)), permits)
    for name in locals_:
        await ask(asker, name)
    await asker.close()
    assert server.connections == 2
    assert permits.log[1:] == ["session", "ended", "session", "ended", "greeted"]


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param("421 4.7.0 Error: too many errors", id="421"),
        pytest.param("421 4.3.2 closing transmission channel", id="421 without a reason"),
        pytest.param("452 4.5.3 Too many recipients", id="452"),
        pytest.param("550 Rejected for too many bad recipients", id="as Exim is shipped"),
        pytest.param("503 5.5.1 Error: need MAIL command", id="state lost"),
    ],
)
async def test_a_reply_about_the_session_leaves_its_question_to_the_next_one(farm: MailFarm, limit: str) -> None:
    """RFC 5321 section 4.5.3.1.10: who got 452 is asked in another transaction."""
    server = await farm.server(
        farm.hello(farm.rcpt("a", NO), farm.rcpt("b", limit)), farm.hello(farm.rcpt("b", YES), farm.rcpt("c", NO))
    )
    permits = Permits()
    asker = prober(farm, Names(mx1=(server.ip,)), permits)
    code = int(limit[:3])
    answers = [[end[2] for end in ends(await ask(asker, name))] for name in "abc"]
    assert answers == [[550], [code, 250], [550]]
    await asker.close()
    assert permits.log[1:] == ["session", "ended", "session", "ended", "greeted"]


async def test_a_session_limit_at_the_first_question_is_its_answer(farm: MailFarm) -> None:
    server = await farm.server(
        farm.hello(farm.rcpt("a", "421 4.7.0 too many errors")), farm.hello(farm.rcpt("b", "421 4.7.0 too many errors"))
    )
    asker = prober(farm, Names(mx1=(server.ip,)), Permits())
    assert [ends(await ask(asker, name)) for name in "ab"] == [[("mx1", Stage.RCPT, 421)]] * 2
    await asker.close()
    assert server.connections == 2


async def test_a_busy_mailbox_is_no_session_limit(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("a", NO), farm.rcpt("b", "450 4.2.0 Greylisted")))
    asker = prober(farm, Names(mx1=(server.ip,)), Permits())
    assert [ends(await ask(asker, name))[-1][2] for name in "ab"] == [550, 450]
    await asker.close()
    assert server.connections == 1


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed before the next", "not yet noticed"])
async def test_a_server_that_hangs_up_after_the_first_550_is_asked_the_rest_in_new_sessions(
    farm: MailFarm, noticed: bool
) -> None:
    server = await farm.server(*(farm.hello(farm.rcpt(name, NO)) for name in "abc"))
    server.hang_up_after = True
    asker = prober(farm, Names(mx1=(server.ip,)), Permits())
    for name in "abc":
        answer = await ask(asker, name)
        assert ends(answer)[-1] == ("mx1", Stage.RCPT, 550)
        await asyncio.sleep(0.02 if noticed else 0)
    await asker.close()
    assert server.connections == 3


async def test_a_server_that_hangs_up_on_the_question_itself_has_answered_it(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("a", None)))
    asker = prober(farm, Names(mx1=(server.ip,)), Permits())
    assert ends(await ask(asker, "a")) == [("mx1", Stage.RCPT, Trouble.CLOSED)]
    await asker.close()


async def test_a_question_that_met_a_closed_session_is_put_once_more(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("a", NO), farm.rcpt("b", None)), farm.hello(farm.rcpt("b", NO)))
    asker = prober(farm, Names(mx1=(server.ip,)), Permits())
    await ask(asker, "a")
    assert ends(await ask(asker, "b")) == [("mx1", Stage.RCPT, Trouble.CLOSED), ("mx1", Stage.RCPT, 550)]
    await asker.close()


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(["554 5.7.1 no"], id="banner"),
        pytest.param(["GARBAGE"], id="garbage"),
        pytest.param(["220 mx", ("EHLO gate.example", None)], id="hangs up"),
        pytest.param(["220 mx", ("EHLO gate.example", "451 4.3.0 later")], id="EHLO refused"),
    ],
)
async def test_trouble_before_rcpt_goes_on_to_the_next_host(farm: MailFarm, bad: Dialogue) -> None:
    first = await farm.server(bad)
    second = await farm.server(farm.hello(farm.rcpt("info", YES)))
    permits = Permits()
    asker = prober(farm, Names(mx1=(first.ip,), mx2=(second.ip,)), permits)
    answer = await ask(asker, "info", MX1, MX2)
    assert len(answer.attempts) == 2
    assert ends(answer)[-1] == ("mx2", Stage.RCPT, 250)
    await asker.close()
    assert permits.log.count("session") == permits.log.count("ended") == 2


async def test_the_next_address_of_a_host_comes_before_the_next_host(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("info", YES)))
    names = Names(mx1=(farm.no_answer_ip(), server.ip), mx2=(server.ip,))
    asker = prober(farm, names, Permits())
    answer = await ask(asker, "info", MX1, MX2)
    assert ends(answer) == [("mx1", Stage.CONNECT, Trouble.REFUSED), ("mx1", Stage.RCPT, 250)]
    await asker.close()


async def test_the_address_that_answered_is_the_first_one_at_the_next_session(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("a", "421 bye")), farm.hello(farm.rcpt("b", NO)))
    names = Names(mx1=(farm.no_answer_ip(), server.ip))
    asker = prober(farm, names, Permits())
    assert len((await ask(asker, "a")).attempts) == 2
    assert len((await ask(asker, "b")).attempts) == 1
    await asker.close()
    assert names.asked == [MX1]


async def test_at_most_three_hosts_are_tried(farm: MailFarm) -> None:
    await farm.server()
    none = (farm.no_answer_ip(),)
    asker = prober(farm, Names(mx1=none, mx2=none, mx3=none), Permits())
    answer = await ask(asker, "info", MX1, MX2, MX3, MX4)
    assert ends(answer) == [(host, Stage.CONNECT, Trouble.REFUSED) for host in ("mx1", "mx2", "mx3")]
    await asker.close()


@pytest.mark.parametrize("trouble", [Trouble.UNROUTABLE, Trouble.NO_ADDRESS, Trouble.NAME_LOOKUP])
async def test_a_host_without_a_usable_address_takes_no_lease_and_no_connection(
    farm: MailFarm, trouble: Trouble
) -> None:
    permits = Permits()
    asker = prober(farm, Names(mx1=NameTrouble(trouble=trouble, detail="why")), permits)
    answer = await ask(asker, "info")
    assert answer.attempts == (Attempt(host=MX1, stage=Stage.CONNECT, trouble=trouble, detail="why"),)
    await asker.close()
    assert permits.log == []


@pytest.mark.parametrize("literal", ["192.0.2.1", "[192.0.2.1]", "127.1", "2606:4700::1", "0x7f000001", "2130706433"])
async def test_an_mx_that_is_an_ip_literal_makes_no_connection(farm: MailFarm, literal: str) -> None:
    permits = Permits()
    asker = prober(farm, Names(), permits)
    answer = await ask(asker, "info", literal)
    assert answer.attempts[0].trouble is Trouble.UNROUTABLE
    assert answer.attempts[0].detail == "MX is an IP literal"
    await asker.close()
    assert permits.log == []


@pytest.mark.parametrize("late", [False, True], ids=["in the handshake", "after the handshake"])
async def test_a_broken_starttls_is_followed_by_a_session_without_tls(farm: MailFarm, late: bool) -> None:
    offer = "250-mx\n250 STARTTLS"
    broken: Dialogue = [
        "220 mx",
        ("EHLO gate.example", offer),
        ("STARTTLS", "220 go" if late else "220 go\njunk"),
        ("EHLO gate.example", None) if late else b"junk\r\n" * 20,
    ]
    server = await farm.server(
        broken,
        farm.hello(farm.rcpt("a", "421 bye"), ehlo=offer),
        farm.hello(farm.rcpt("b", NO), ehlo=offer),
        tls=farm.self_signed() if late else None,
    )
    server.hang_up_after = True
    permits = Permits()
    asker = prober(farm, Names(mx1=(server.ip,)), permits, command_s=0.3)
    assert ends(await ask(asker, "a")) == [("mx1", Stage.STARTTLS, Trouble.TLS), ("mx1", Stage.RCPT, 421)]
    assert ends(await ask(asker, "b")) == [("mx1", Stage.RCPT, 550)]
    await asker.close()
    assert permits.log.count("session") == 3


async def test_a_wait_for_the_lease_is_handed_on(farm: MailFarm) -> None:
    permits = Permits(begin=CAPPED)
    asker = prober(farm, Names(mx1=("127.0.0.1",)), permits)
    assert await asker.ask(Address(local_part="info", domain="acme.example"), (MX1,)) is CAPPED
    await asker.close()
    assert permits.log == ["begin acme.example acme.example"]


async def test_a_wait_for_the_next_session_is_handed_on_and_the_lease_given_back(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("a", "421 bye")))
    permits = Permits(waits_at=1)
    asker = prober(farm, Names(mx1=(server.ip,)), permits)
    await ask(asker, "a")
    assert await asker.ask(Address(local_part="b", domain="acme.example"), (MX1,)) is CAPPED
    await asker.close()
    assert permits.log[-1] == "greeted"


async def test_without_a_banner_nobody_greeted_us(farm: MailFarm) -> None:
    server = await farm.server(["554 5.7.1 no"])
    permits = Permits()
    held = Held(by=HeldBy.REFUSED, host=MX1, reason="scripted")
    asker = prober(farm, Names(mx1=(server.ip,)), permits)
    await ask(asker, "info")
    await asker.close(refused=[held])
    assert permits.log[-1] == "not greeted"
    assert permits.met == {"acme.example": Met.REPLIED}
    assert permits.refused == [held]


class Anywhere(Names):
    """Names of several companies."""

    def __init__(self, **hosts: tuple[str, ...]) -> None:
        super().__init__()
        self.hosts |= {f"mx1.{company}.example": found for company, found in hosts.items()}


async def test_each_provider_has_a_lease_and_a_verdict_of_its_own(farm: MailFarm) -> None:
    """What the first one's host does is no word of the second one's."""
    dead, busy = await farm.server([""]), await farm.server(["421 4.3.2 try later"])
    well = await farm.server(farm.hello(farm.rcpt("info", YES)))
    permits = Permits()
    names = Anywhere(acme=(dead.ip,), hoster=(busy.ip,), bigmail=(well.ip,))
    asker = prober(farm, names, permits, command_s=0.2)
    answer = await ask(asker, "info", "mx1.acme.example", "mx1.hoster.example", "mx1.bigmail.example")
    assert answer.reached_rcpt
    await asker.close()
    assert [step for step in permits.log if step.startswith(("begin", "enter"))] == [
        "begin acme.example acme.example", "enter hoster.example", "enter bigmail.example"
    ]  # fmt: skip
    assert permits.met == {
        "acme.example": Met.SILENT, "hoster.example": Met.REPLIED, "bigmail.example": Met.GREETED
    }  # fmt: skip


async def test_a_provider_that_is_closed_is_not_asked_behind_a_dead_host_either(farm: MailFarm) -> None:
    dead, closed = await farm.server([""]), await farm.server(farm.hello(farm.rcpt("info", YES)))
    permits = Permits()
    permits.closed_to = {"hoster.example": CAPPED}
    asker = prober(farm, Anywhere(acme=(dead.ip,), hoster=(closed.ip,)), permits, command_s=0.2)
    address = Address(local_part="info", domain="acme.example")
    assert await asker.ask(address, ("mx1.acme.example", "mx1.hoster.example")) is CAPPED
    await asker.close()
    assert closed.commands == []
    assert permits.met == {"acme.example": Met.SILENT}


async def test_a_used_up_deadline_asks_no_server(farm: MailFarm) -> None:
    asker = prober(farm, Names(mx1=("127.0.0.1",)), Permits(), deadline_s=0.0)
    assert ends(await ask(asker, "info", MX1, MX2)) == [("mx1", Stage.CONNECT, Trouble.DEADLINE)]
    await asker.close()


async def test_a_tarpit_ends_inside_the_deadline_and_asks_no_further_host(farm: MailFarm) -> None:
    server = await farm.server(["220 mx", ("EHLO gate.example", b"")])
    asker = prober(farm, Names(mx1=(server.ip,)), Permits(), deadline_s=0.6)
    assert ends(await ask(asker, "info", MX1, MX2)) == [("mx1", Stage.HELO, Trouble.DEADLINE)]
    await asker.close()


async def test_the_time_for_leases_does_not_count(farm: MailFarm) -> None:
    class Slow(Permits):
        async def next_session(self) -> Wait | None:
            await asyncio.sleep(0.3)
            return await super().next_session()

    server = await farm.server(farm.hello(farm.rcpt("info", YES)))
    watch, begun_at = Stopwatch(30.0), time.monotonic()
    asker = prober(farm, Names(mx1=(server.ip,)), Slow(), stopwatch=watch)
    assert ends(await ask(asker, "info"))[-1][2] == 250
    assert 0 < watch.spent_s <= time.monotonic() - begun_at - 0.3
    await asker.close()


async def test_a_cancelled_pass_gives_its_lease_back(farm: MailFarm) -> None:
    asked = asyncio.Event()

    async def tarpit(server: SmtpServer) -> bytes:
        del server
        asked.set()
        return b""

    server = await farm.server(farm.hello(("RCPT TO:<info@acme.example>", tarpit)))
    permits = Permits()
    asker = prober(farm, Names(mx1=(server.ip,)), permits)

    async def one_pass() -> None:
        try:
            await ask(asker, "info")
        finally:
            await asker.close()

    task = asyncio.create_task(one_pass())
    await asked.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # a second time, while it closes
    with pytest.raises(asyncio.CancelledError):
        await task
    assert permits.log[-2:] == ["ended", "greeted"]


# ---------------------------------------------------------------- what this machine lacks

NO_IPV6 = Wait(reason=WaitReason.ANOTHER_MACHINE, detail="no IPv6", waits_on=WaitsOn.way(ControlKind.SMTP6))


async def test_a_host_with_an_address_that_this_machine_reaches_is_asked_there(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("info", NO)))
    permits = Permits()
    permits.lacking[ControlKind.SMTP6] = NO_IPV6
    asker = prober(farm, Names(mx1=("2001:db8::1", server.ip)), permits)
    assert ends(await ask(asker, "info")) == [("mx1", Stage.RCPT, 550)], "the other one is no trouble of the company"
    await asker.close()


async def test_the_addresses_that_a_machine_lacks_take_no_place_of_the_others(farm: MailFarm) -> None:
    """A machine with IPv6 alone, and a host that has IPv4 addresses enough."""
    permits = Permits()
    permits.lacking[ControlKind.SMTP] = NO_IPV6
    asker = prober(farm, Names(mx1=("192.0.2.1", "192.0.2.2", "::1")), permits)
    assert ends(await ask(asker, "info")) == [("mx1", Stage.CONNECT, Trouble.REFUSED)], "nobody listens there"
    await asker.close()


async def test_two_addresses_of_a_host_are_tried_at_most(farm: MailFarm) -> None:
    asker = prober(farm, Names(mx1=("127.9.9.1", "127.9.9.2", "127.9.9.3", "::1")), Permits())
    assert len((await ask(asker, "info")).attempts) == 2
    await asker.close()


@pytest.mark.parametrize("first", [True, False], ids=["the best host", "behind a silent one"])
async def test_a_host_that_this_machine_cannot_reach_is_left_to_one_that_can(farm: MailFarm, first: bool) -> None:
    """Neither silence nor the word of a backup: nobody here knows what the host would have said."""
    server = await farm.server(farm.hello(farm.rcpt("info", NO)))
    permits = Permits()
    permits.lacking[ControlKind.SMTP6] = NO_IPV6
    silent = farm.no_answer_ip()
    names = Names(mx1=("2001:db8::1",), mx2=(server.ip,)) if first else Names(mx1=(silent,), mx2=("2001:db8::1",))
    asker = prober(farm, names, permits)
    answer = await asker.ask(Address(local_part="info", domain="acme.example"), (MX1, MX2))
    assert answer is NO_IPV6
    await asker.close()
    assert server.connections == 0
