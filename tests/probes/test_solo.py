"""A pass alone keeps the pause, and is held instead of failing a domain for our own trouble."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from ct_stream.control_domains import ControlDomain
from ct_stream.gate.middle_stage import middle_stage
from ct_stream.gate.patterns import Address, ProbeName, random_address
from ct_stream.gate.questions import ControlAnswer, ControlKind, MxAnswer, MxStatus, Trouble
from ct_stream.gate.rules import Rules
from ct_stream.gate.verdicts import Failed, Held, HeldBy, Passed
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.probes.answer import PassDriver, Waiting, World
from ct_stream.probes.control_probe import SmtpControl
from ct_stream.probes.mailbox import MailboxProber
from ct_stream.probes.mx import ControlResult, NameTrouble
from ct_stream.probes.smtp import SmtpSettings
from ct_stream.probes.solo import NoMemory, NoSpine, SoloControls, SoloPermits, SoloRefusals, Tier2Off

if TYPE_CHECKING:
    from ct_stream.gate.middle_stage import Flow
    from ct_stream.probes.mx import Family
    from tests.probes.conftest import Dialogue, MailFarm, Step

ID = UUID("5f0c2b1e-9a41-4c53-9d6e-2f1c8e9b7a10")
CONTROL = ControlDomain(domain="control.example", is_plain=True)
RULES = Rules(probe_name=ProbeName(first="jordan", last="whitfield"))


class Clock:
    """A clock that goes on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


async def test_the_next_session_of_a_domain_begins_two_seconds_after_the_end_of_the_last() -> None:
    clock = Clock()
    permits = SoloPermits(2.0, clock=clock, sleep=clock.sleep)
    lease = await permits.begin_probe("a.example", "p.example")
    assert not isinstance(lease, Wait)
    assert await lease.next_session() is None
    assert clock.slept == []
    clock.now += 7
    lease.session_ended()
    clock.now += 0.5
    assert await lease.next_session() is None
    assert clock.slept == [1.5]


# ---------------------------------------------------------------- controls and refusals


class Names:
    """A resolver of one company and one control, each with one server."""

    def __init__(self, farm: MailFarm, mx: MxAnswer | None = None, *, dns_ok: bool = True) -> None:
        self.farm = farm
        self.mx = mx or MxAnswer(status=MxStatus.FOUND, hosts=("mx.acme.example",))
        self.dns_ok = dns_ok
        self.ips = {
            "mx.acme.example": "127.0.0.1",
            "mx.bigmail.example": "127.0.0.1",
            "mx.control.example": "127.0.0.2",
        }

    async def lookup_mx(self, domain: str) -> MxAnswer:
        if domain == "control.example":
            return MxAnswer(status=MxStatus.FOUND, hosts=("mx.control.example",))
        assert domain == "acme.example"
        return self.mx

    async def lookup_addresses(self, host: str, family: Family | None = None) -> tuple[str, ...] | NameTrouble:
        assert family in (None, 4)
        return (self.ips[host],)

    async def dns_control(self, domain: str) -> ControlResult:
        return ControlResult(ok=self.dns_ok, detail=f"scripted {domain}")


def settings(farm: MailFarm) -> SmtpSettings:
    return SmtpSettings(
        helo="gate.example", mail_from="probe@gate.example", port=farm.port, connect_s=0.3, command_s=0.3, quit_s=0.05
    )


async def check(farm: MailFarm, names: Names) -> Passed | Failed | Waiting:
    """Do what `ct-stream check acme.example` does without a database."""
    clock = Clock()
    permits = SoloPermits(2.0, clock=clock, sleep=clock.sleep)
    smtp = SmtpControl(names, settings(farm))
    world = World(
        spine=NoSpine("acme.example"),
        memory=NoMemory(),
        resolver=names,
        permits=permits,
        controls=SoloControls(names, smtp, [CONTROL]),
        refusals=SoloRefusals(smtp, [CONTROL]),
        tier2=Tier2Off(),
        probers=lambda stopwatch: MailboxProber(
            resolver=names, permits=permits, settings=settings(farm), stopwatch=stopwatch
        ),
    )

    def flow() -> Flow:
        return middle_stage(ID, "acme.example", RULES, tier2_off="Tier-2 is off")

    return await PassDriver(ID, RULES, world, deadline_s=5.0, flow=flow).run()


def all_patterns(farm: MailFarm, reply: str) -> list[Step]:
    names = ("jordan.whitfield", "jordanwhitfield", "j.whitfield", "jordan.w", "jordan", "whitfield", "info", "contact")
    return [farm.rcpt(name, reply) for name in names]


async def test_a_check_finds_the_pattern_of_an_honest_server(farm: MailFarm) -> None:
    no, yes = "550 5.1.1 User unknown", "250 2.1.5 ok"
    steps = all_patterns(farm, no)
    await farm.server(
        farm.hello(*steps[:6], farm.rcpt("info", yes), (f"RCPT TO:<{random_address(ID, 'acme.example')}>", no))
    )
    verdict = await check(farm, Names(farm))
    assert isinstance(verdict, Passed)
    assert (verdict.method_type, verdict.confidence) == ("info", 0.70)


async def test_no_mx_holds_while_the_dns_control_fails(farm: MailFarm) -> None:
    gone = MxAnswer(status=MxStatus.NXDOMAIN)
    held = await check(farm, Names(farm, gone, dns_ok=False))
    assert isinstance(held, Waiting)
    assert (held.wait.reason, "control.example" in held.wait.detail) == (WaitReason.RESOLVER, True)
    assert isinstance(await check(farm, Names(farm, gone)), Failed)


async def test_a_dead_server_holds_while_no_control_takes_our_mail(farm: MailFarm) -> None:
    await farm.server()
    names = Names(farm)
    names.ips = {"mx.acme.example": farm.no_answer_ip(), "mx.control.example": farm.no_answer_ip()}
    held = await check(farm, names)
    assert isinstance(held, Waiting)
    assert held.wait.reason is WaitReason.CONTROL
    assert "mx.control.example at connect: refused" in held.wait.detail


async def test_a_dead_server_fails_once_a_control_takes_our_mail(farm: MailFarm) -> None:
    await farm.server()
    control = await farm.server(farm.hello())
    names = Names(farm)
    names.ips["mx.acme.example"] = farm.no_answer_ip()
    assert isinstance(await check(farm, names), Failed)
    assert control.commands[:2] == ["EHLO gate.example", "MAIL FROM:<probe@gate.example>"]


LISTED = ["554 5.7.1 blocked using list.example at spamhaus"]


async def test_the_companys_own_server_may_refuse_us_while_a_control_takes_our_mail(farm: MailFarm) -> None:
    await farm.server(LISTED)
    control = await farm.server(farm.hello())
    verdict = await check(farm, Names(farm))
    assert isinstance(verdict, Failed)
    assert "our address is listed" in verdict.reason
    assert not any(line.startswith(("RCPT", "DATA")) for line in control.commands)


async def test_a_shared_provider_that_refuses_us_holds_the_company(farm: MailFarm) -> None:
    await farm.server(LISTED)
    await farm.server(farm.hello())
    held = await check(farm, Names(farm, MxAnswer(status=MxStatus.FOUND, hosts=("mx.bigmail.example",))))
    assert isinstance(held, Waiting)
    assert (held.wait.reason, held.wait.waits_on) == (WaitReason.PROVIDER_CLOSED, "provider:bigmail.example")
    assert "spamhaus" in held.wait.detail
    assert held.pending is not None


@pytest.mark.parametrize(
    "control", [LISTED, ["220 control", ("EHLO gate.example", "550 5.7.1 banned")]], ids=["banner", "helo"]
)
async def test_a_control_that_refuses_us_too_halts(farm: MailFarm, control: Dialogue) -> None:
    await farm.server(LISTED)
    if len(control) > 1:
        control = [*control, ("HELO gate.example", "550 5.7.1 banned")]
    await farm.server(control)
    held = await check(farm, Names(farm))
    assert isinstance(held, Waiting)
    assert held.wait.reason is WaitReason.HALTED


async def test_a_reply_about_our_rate_waits_a_minute(farm: MailFarm) -> None:
    await farm.server(["421 4.7.0 too many connections from your IP"])
    held = await check(farm, Names(farm))
    assert isinstance(held, Waiting)
    assert (held.wait.reason, held.wait.after_s) == (WaitReason.OUR_RATE, 60.0)


async def test_controls_say_what_they_saw(farm: MailFarm) -> None:
    await farm.server()
    await farm.server(farm.hello())
    names = Names(farm)
    controls = SoloControls(names, SmtpControl(names, settings(farm)), [CONTROL])
    assert await controls.confirm(ControlKind.SMTP, []) == ControlAnswer(
        detail="mx.control.example takes MAIL FROM, but who answers there was not checked"
    )
    assert await controls.confirm(ControlKind.DNS, []) == ControlAnswer(detail="scripted control.example")


async def test_a_control_without_mx_or_address_fails(farm: MailFarm) -> None:
    class Gone(Names):
        async def lookup_addresses(self, host: str, family: Family | None = None) -> tuple[str, ...] | NameTrouble:
            del host, family
            return NameTrouble(trouble=Trouble.NO_ADDRESS, detail="")

    gone = Gone(farm, MxAnswer(status=MxStatus.UNAVAILABLE, detail="SERVFAIL from r"))
    control = SmtpControl(gone, settings(farm))
    assert await control.smtp_control(ControlDomain(domain="acme.example")) == ControlResult(
        ok=False, detail="acme.example: unavailable SERVFAIL from r"
    )
    assert (await control.smtp_control(CONTROL)).detail == "mx.control.example: no_address"


async def test_without_control_domains_nothing_is_confirmed(farm: MailFarm) -> None:
    names = Names(farm)
    wait = await SoloControls(names, SmtpControl(names, settings(farm)), []).confirm(ControlKind.DNS, [])
    assert isinstance(wait, Wait)
    assert "no control domain is set" in wait.detail


async def test_tier2_that_is_off_is_never_asked() -> None:
    assert Tier2Off().off_because() == "Tier-2 is off"
    with pytest.raises(RuntimeError, match="Tier-2 is off"):
        await Tier2Off().verify(ID, Address(local_part="info", domain="acme.example"))


async def test_held_by_rate_names_the_provider(farm: MailFarm) -> None:
    held = Held(by=HeldBy.RATE, host="mx.bigmail.example", reason="slow down")
    wait = await SoloRefusals(SmtpControl(Names(farm), settings(farm)), []).judge(
        held, "acme.example", "bigmail.example"
    )
    assert wait is not None
    assert wait.waits_on == "provider:bigmail.example"
