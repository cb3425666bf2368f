"""The farm's control proves who it is, and its impostors prove nothing, on the loops of `check` and of the worker."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from ct_stream.gate.questions import ControlKind
from ct_stream.local.farm import MailFarm
from ct_stream.probes.mx import ControlResult
from ct_stream.probes.probing import make_probing
from ct_stream.settings import load_settings

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def proof(loop: Callable[[], asyncio.AbstractEventLoop], **settings: str) -> ControlResult:
    async def ask() -> ControlResult:
        async with MailFarm() as farm:
            return await make_probing(load_settings(farm.env() | settings)).ask_control(ControlKind.SMTP)

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(ask())


@LOOPS
def test_the_farms_control_is_authentic_and_says_whom_it_sees(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    result = proof(loop)
    assert (result.ok, result.our_address, result.family) == (True, "127.0.0.1", 4)
    assert result.detail == (
        "mx1.control.example takes MAIL FROM; authenticated as control.example by ct-stream mail farm"
    )


@LOOPS
@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        ("controlnotls-x.example", "STARTTLS is stripped on the way: it is not offered"),
        ("controlrefusestls-x.example", "STARTTLS is stripped on the way: it is offered, and refused with '454 "),
        ("controlselfsigned-x.example", "its certificate is not signed by a known authority"),
        ("controlexpired-x.example", "its certificate has expired"),
        ("controlother-x.example", "its certificate is for control.example, *.control.example, not for controlother-x"),
    ],
)
def test_an_impostor_of_the_farm_is_found_out(
    loop: Callable[[], asyncio.AbstractEventLoop], domain: str, reason: str
) -> None:
    result = proof(loop, CT_CONTROL_DOMAINS=f"{domain}={domain}")
    assert result.detail.startswith(f"mx1.{domain}: somebody answers in its place: {reason}")
    assert proof(loop, CT_CONTROL_DOMAINS=f"{domain}=plain").ok


def test_an_authority_that_signed_something_else_vouches_for_nothing() -> None:
    """The system's own authorities do not know the farm's."""

    async def ask() -> ControlResult:
        async with MailFarm() as farm:
            env = farm.env()
            del env["CT_CONTROL_CA_FILE"]
            return await make_probing(load_settings(env)).ask_control(ControlKind.SMTP)

    assert "not signed by a known authority" in asyncio.run(ask()).detail
