"""Control a farm that runs in another process, by one JSON object a line over loopback.

The farm's process writes a state file when it is ready; `FarmClient` reads it. Tests that kill workers, and benches
that must not share a processor with the farm, run it this way.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict

import orjson

from ct_stream.local.farm.faults import ResolverMode, SmtpBlock, Stage
from ct_stream.local.farm.log import FarmLog
from ct_stream.local.farm.mailfarm import MailFarm
from ct_stream.local.processes import ChildProcess, LocalError

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWER_S = 10.0
_READY_S = 15.0

#: A command's arguments are texts, a number, or nothing.
Argument = str | int | float | None


class State(TypedDict):
    """What the state file says: where the farm is and which settings lead there."""

    pid: int
    control_port: int
    log_path: str | None
    env: dict[str, str]


class FarmControl:
    """Take commands for a farm; `until_stopped` returns after `stop`."""

    def __init__(self, farm: MailFarm, log_path: Path | None) -> None:
        self._farm = farm
        self._log_path = log_path
        self._stopped = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        faults = farm.faults
        self._commands: dict[str, Callable[..., object]] = {
            "add": lambda *company: farm.add(*company) and None,
            "set_resolver": faults.set_resolver,
            "set_resolvers": faults.set_resolvers,
            "block_smtp": faults.block_smtp,
            "refuse": faults.refuse,
            "accept": faults.accept,
            "refuse_client": faults.refuse_client,
            "accept_client": faults.accept_client,
            "clear_faults": faults.clear,
            "set_reply_delay": self._set_reply_delay,
            "flush_log": farm.log.flush,
            "stats": self._stats,
            "stop": self._stopped.set,
        }

    async def start(self) -> State:
        """Listen on a free port and return the state to publish."""
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        return {
            "pid": os.getpid(),
            "control_port": self._server.sockets[0].getsockname()[1],
            "log_path": None if self._log_path is None else str(self._log_path),
            "env": self._farm.env(),
        }

    async def until_stopped(self) -> None:
        """Return when a client said `stop`."""
        await self._stopped.wait()

    def stop(self) -> None:
        """End the process's farm, as a signal does."""
        self._stopped.set()

    async def close(self) -> None:
        """Take no more commands."""
        if self._server is not None:
            self._server.close()
            for writer in self._clients:
                writer.close()
            await self._server.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while line := await reader.readline():
                writer.write(orjson.dumps(self._obey(line)) + b"\n")
        except ConnectionError:
            pass  # the client died; its faults stay
        finally:
            self._clients.discard(writer)
            writer.close()

    def _obey(self, line: bytes) -> dict[str, object]:
        try:
            command, *arguments = orjson.loads(line)
            return {"result": self._commands[command](*arguments)}
        except (LocalError, ValueError, KeyError, IndexError, TypeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _set_reply_delay(self, delay_s: float, spread: float) -> None:
        self._farm.servers.reply_delay_s, self._farm.servers.reply_spread = delay_s, spread

    def _stats(self) -> dict[str, int]:
        return {
            "queries": len(self._farm.log.queries()),
            "sessions": len(self._farm.log.sessions()),
            "open_connections": self._farm.servers.open_connections,
        }


class FarmClient:
    """Steer a farm in another process; its faults stay when the client goes."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Return a client for the farm that wrote this state file."""
        try:
            return cls(orjson.loads(path.read_bytes()))
        except FileNotFoundError as error:
            raise LocalError(f"no mail farm runs: {path} does not exist") from error

    @property
    def env(self) -> dict[str, str]:
        """Return the settings that make the gate ask this farm."""
        return self.state["env"]

    async def add(self, domain: str, scenario: str, provider: str | None = None, address: str | None = None) -> None:
        """Let a domain play a scenario."""
        await self._call("add", domain, scenario, provider, address)

    async def set_resolver(self, index: int, mode: ResolverMode | str) -> None:
        """Set how one resolver behaves."""
        await self._call("set_resolver", index, mode)

    async def set_resolvers(self, mode: ResolverMode | str) -> None:
        """Set how all resolvers behave."""
        await self._call("set_resolvers", mode)

    async def block_smtp(self, mode: SmtpBlock | str | None) -> None:
        """Stop all SMTP; None lets it through again."""
        await self._call("block_smtp", mode)

    async def refuse(self, provider: str, reply: str, stage: Stage | str = Stage.RCPT) -> None:
        """Let a provider's hosts (or EVERYWHERE, or those at an address) refuse us."""
        await self._call("refuse", provider, reply, stage)

    async def accept(self, provider: str) -> None:
        """Lift a provider's refusal."""
        await self._call("accept", provider)

    async def refuse_client(self, client: str, reply: str, stage: Stage | str = Stage.RCPT) -> None:
        """Let all hosts refuse who comes from this address."""
        await self._call("refuse_client", client, reply, stage)

    async def accept_client(self, client: str) -> None:
        """Let all hosts welcome this address again."""
        await self._call("accept_client", client)

    async def clear_faults(self) -> None:
        """Lift all faults."""
        await self._call("clear_faults")

    async def set_reply_delay(self, delay_s: float, spread: float = 0.0) -> None:
        """Wait that long before each SMTP reply, more or less by the part `spread` of it."""
        await self._call("set_reply_delay", delay_s, spread)

    async def stats(self) -> dict[str, int]:
        """Return the counts of queries, sessions and open connections."""
        result = await self._call("stats")
        assert isinstance(result, dict)
        return result

    async def log(self) -> FarmLog:
        """Return all that the farm was asked so far."""
        path = self.state["log_path"]
        if path is None:
            raise LocalError("this farm writes no log; start it with --log FILE")
        await self._call("flush_log")
        return await asyncio.to_thread(FarmLog.read, Path(path))

    async def stop(self) -> None:
        """End the farm."""
        await self._call("stop")

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.state["control_port"])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    async def _call(self, command: str, *arguments: Argument) -> object:
        if self._reader is None or self._writer is None:
            raise LocalError("the farm's client is not connected; use `async with`")
        async with self._lock, asyncio.timeout(_ANSWER_S):
            self._writer.write(orjson.dumps([command, *arguments]) + b"\n")
            line = await self._reader.readline()
        if not line:
            raise LocalError("the mail farm is gone")
        answer = orjson.loads(line)
        if "error" in answer:
            raise LocalError(f"the mail farm refused {command}: {answer['error']}")
        return answer.get("result")


class FarmProcess:
    """Run a farm in a child process and connect to it, for as long as the `async with` lasts."""

    def __init__(
        self, data_dir: Path, *, reply_delay_s: float = 0.0, own_addresses: int = 1000, networks: Sequence[str] = ()
    ) -> None:
        """`networks`: in place of loopback, one of IPv4 (a /16) and perhaps one of IPv6 (a /32)."""
        self._data_dir = data_dir
        self._options = ["--reply-delay", str(reply_delay_s), "--own-addresses", str(own_addresses)]
        self._options += ["--networks", *networks] if networks else []
        self._child: ChildProcess | None = None
        self._client: FarmClient | None = None

    async def __aenter__(self) -> FarmClient:
        state_path, log_path = self._data_dir / "farm.json", self._data_dir / "farm.jsonl"
        self._data_dir.mkdir(parents=True, exist_ok=True)
        state_path.unlink(missing_ok=True)
        self._child = ChildProcess(
            [
                *(sys.executable, "-m", "ct_stream.local.farm"),
                *("--state", str(state_path), "--log", str(log_path), *self._options),
            ],
            name="mail farm",
            log_path=self._data_dir / "farm.log",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._child.start()
        try:
            async with asyncio.timeout(_READY_S):
                while not state_path.exists():
                    self._child.check_running()
                    await asyncio.sleep(0.02)
            self._client = await FarmClient.from_file(state_path).__aenter__()
        except BaseException:
            await self._child.kill()
            raise
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.__aexit__(kind, error, trace)
        if self._child is not None:
            await self._child.stop()
