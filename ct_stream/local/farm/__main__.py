"""Run a mail farm until SIGTERM: python -m ct_stream.local.farm [--state FILE] [--log FILE]"""

import argparse
import asyncio
import os
import shlex
import signal
from pathlib import Path

import orjson
import uvloop

from ct_stream.local.farm.mailfarm import MailFarm
from ct_stream.local.farm.networks import Networks
from ct_stream.local.farm.remote import FarmControl, State
from ct_stream.local.farm.scenarios import SCENARIOS, Expected
from ct_stream.local.processes import in_a_shell, raise_descriptor_limit


async def run(
    *, state_path: Path | None, log_path: Path | None, reply_delay_s: float, own_addresses: int, networks: Networks
) -> None:
    """Serve; the state file appears, whole, when everything listens, and is gone when nothing does.

    Without one the farm tells a person how to use it.
    """
    async with MailFarm(
        reply_delay_s=reply_delay_s, log_path=log_path, own_addresses=own_addresses, networks=networks
    ) as farm:
        control = FarmControl(farm, log_path)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, control.stop)
        state = await control.start()
        if state_path is None:
            print("\n".join(introduction(state)), flush=True)
        else:
            publish(state, state_path)
        try:
            await control.until_stopped()
        finally:
            if state_path is not None:
                os.unlink(state_path)
            await control.close()


def introduction(state: State) -> list[str]:
    """Return what a person needs to play with the farm: its scenarios, and the settings that lead to it."""
    lines = [f"  {name:17} {_told(scenario.expected)}" for name, scenario in SCENARIOS.items()]
    return [
        "A domain <scenario>-<anything>.example plays a scenario; <scenario>-at-<provider>-<anything>.example plays it",
        "behind the provider's shared server. The outcome beside each is the right one.",
        "",
        *lines,
        "",
        "In another terminal (Ctrl-C here ends the farm):",
        "",
        *(f"export {name}={shlex.quote(value)}" for name, value in state["env"].items()),
        f"{in_a_shell()} check info-acme.example",
    ]


def _told(expected: Expected) -> str:
    words = [expected.outcome, expected.method_type or ""]
    if expected.confidence is not None:
        words.append(f"{expected.confidence:.2f}")
    if expected.is_catchall:
        words.append("catch-all")
    return " ".join(filter(None, words))


def publish(state: State, path: Path) -> None:
    """Write the state file in one step, so that a reader finds all of it or none, and print it."""
    partial_path = path.with_suffix(".partial")
    partial_path.write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2))
    partial_path.rename(path)
    print(orjson.dumps(state).decode(), flush=True)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m ct_stream.local.farm", description=run.__doc__)
    parser.add_argument("--state", type=Path, help="where to write the settings that lead to the farm")
    parser.add_argument("--log", type=Path, help="where to write every question, as JSON lines")
    parser.add_argument("--reply-delay", type=float, default=0.0, help="seconds before each SMTP reply")
    parser.add_argument("--own-addresses", type=int, default=1000, help="MX hosts with an address of their own")
    parser.add_argument("--networks", nargs="+", default=[], help="where it listens, in place of 127.77.0.0/16")
    options = parser.parse_args()
    raise_descriptor_limit()
    uvloop.run(
        run(
            state_path=options.state,
            log_path=options.log,
            reply_delay_s=options.reply_delay,
            own_addresses=options.own_addresses,
            networks=Networks.of(options.networks),
        )
    )


if __name__ == "__main__":
    main()
