"""Keep three Kafka brokers up after the shell that started them has ended.

    python -m tools.kafka.background up|status|down
    python -m tools.kafka.background start|stop|kill BROKER

Each broker holds a lock on a file of its own for as long as it lives, through a descriptor that it inherits: the kernel
frees the lock however the broker ends, so no file can lie about who runs. There is no supervisor: one broker may die
and the others keep running, which is what they are for.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient

from ct_stream.local.processes import LocalError, lock_holder, require_free_port
from tools.kafka.cluster import BROKERS, ClusterFiles, port_is_open, trouble_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

FOLDER = Path(__file__).parents[2] / ".kafka" / "cluster"
_READY_S = 90.0
_STOP_S = 40.0
_POLL_S = 0.1
_DOWN = 1


class BackgroundCluster:
    """Three brokers that belong to a folder, not to a process."""

    def __init__(self, folder: Path) -> None:
        self.files = ClusterFiles(folder=folder)

    def pid(self, node: int) -> int | None:
        """Return the process of a broker that lives, or None."""
        return lock_holder(self._lock(node))

    @property
    def running(self) -> list[int]:
        """Return the brokers that live."""
        return [node for node in BROKERS if self.pid(node) is not None]

    async def up(self) -> None:
        """Start what does not run, formatted first if need be, and wait until nothing is missing."""
        if not self.files.is_formatted:
            await self.files.format()
        await self.start(*BROKERS)

    async def start(self, *nodes: int) -> None:
        """Start brokers with what they have; come back when they have joined the others that live."""
        if not self.files.is_formatted:
            raise LocalError("there is no cluster; make one with `make kafka-cluster`")
        launched = {node: self._launch(node) for node in nodes if self.pid(node) is None}
        deadline = time.monotonic() + _READY_S
        try:
            for node, broker in launched.items():
                while not await port_is_open(self.files.port(node)):
                    self._check(node, broker, deadline)
                    await asyncio.sleep(_POLL_S)
            # With one of three there is no quorum, and nothing to join.
            while len(self.running) > 1 and (trouble := await self.trouble()) is not None:
                if time.monotonic() > deadline:
                    raise LocalError(f"Kafka is not well after {_READY_S:g} s: {trouble} (see {self.files.folder})")
                await asyncio.sleep(_POLL_S)
        finally:
            for broker in launched.values():
                if broker.poll() is None:
                    broker.returncode = 0  # it outlives us on purpose: no warning at the end

    async def end(self, how: signal.Signals, *nodes: int) -> list[int]:
        """Signal brokers and return, when they have ended, those that ran."""
        pids = {node: pid for node in nodes if (pid := self.pid(node)) is not None}
        for pid in pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        deadline = time.monotonic() + _STOP_S
        for node, pid in pids.items():
            while self.pid(node) == pid:
                if time.monotonic() > deadline:
                    # A broker that finds no controller to hand its leaders over to would wait for minutes.
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(_POLL_S)
        return list(pids)

    async def trouble(self) -> str | None:
        """Return what the cluster lacks as long as these brokers live, or None."""
        running = self.running
        if not running:
            return "no broker runs"
        return await trouble_of(self._admin(running), running)

    @asynccontextmanager
    async def _admin(self, nodes: Sequence[int]) -> AsyncIterator[AIOKafkaAdminClient]:
        client = AIOKafkaAdminClient(
            bootstrap_servers=",".join(f"127.0.0.1:{self.files.port(node)}" for node in nodes), request_timeout_ms=5000
        )
        try:
            await client.start()
            yield client
        finally:
            await client.close()

    def _launch(self, node: int) -> subprocess.Popen[bytes]:
        require_free_port(self.files.port(node), f"Kafka broker {node}")
        with self._lock(node).open("a+") as lock, self.files.log(node).open("ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LocalError(f"Kafka broker {node} is just being started by somebody else") from error
            # A session of its own: neither Ctrl-C nor the end of the terminal reaches it.
            broker = subprocess.Popen(
                self.files.command(node),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                pass_fds=(lock.fileno(),),
            )
            lock.truncate(0)
            lock.write(str(broker.pid))
        return broker

    def _check(self, node: int, broker: subprocess.Popen[bytes], deadline: float) -> None:
        where = f"see {self.files.log(node)}"
        if broker.poll() is not None:
            raise LocalError(f"Kafka broker {node} ended with exit code {broker.returncode}; {where}")
        if time.monotonic() > deadline:
            raise LocalError(f"Kafka broker {node} does not listen after {_READY_S:g} s; {where}")

    def _lock(self, node: int) -> Path:
        return self.files.folder / f"broker-{node}.pid"


async def _obey(cluster: BackgroundCluster, command: str, node: int | None) -> int:
    match command:
        case "up":
            await cluster.up()
            print(f"export CT_KAFKA_BOOTSTRAP={cluster.files.bootstrap}")
            return 0
        case "down":
            await cluster.end(signal.SIGTERM, *BROKERS)
            return 0
        case "status":
            for each in BROKERS:
                pid = cluster.pid(each)
                print(f"broker {each} " + ("does not run" if pid is None else f"runs as process {pid}"))
            trouble = await cluster.trouble()
            print("every partition has a leader" if trouble is None else trouble)
            return 0 if trouble is None and cluster.running == list(BROKERS) else _DOWN
    assert node is not None
    match command:
        case "start":
            await cluster.start(node)
            print(f"broker {node} runs as process {cluster.pid(node)}")
        case "stop" | "kill":
            how = signal.SIGTERM if command == "stop" else signal.SIGKILL
            ended = await cluster.end(how, node)
            print(f"broker {node} " + ("has ended" if ended else "did not run"))
    return 0


def main() -> int:
    """Do what a person asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.kafka.background")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "status", "down"):
        commands.add_parser(name)
    for name in ("start", "stop", "kill"):
        commands.add_parser(name).add_argument("broker", type=int, choices=BROKERS)
    chosen = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it logs each broker that it cannot reach; we know
    try:
        return asyncio.run(
            _obey(BackgroundCluster(chosen.folder.resolve()), chosen.command, getattr(chosen, "broker", None))
        )
    except LocalError as error:
        print(error, file=sys.stderr)
        return 69


if __name__ == "__main__":
    sys.exit(main())
