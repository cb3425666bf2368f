"""Run Apache Kafka here: three brokers on loopback, each a process that can be killed or paused.

All three are broker and controller at once (KRaft). Production keeps the two apart, but here a machine that dies takes
both with it: with two of three gone there is no quorum either, which is the harder case, and three JVMs start faster
than four.
"""

from __future__ import annotations

import asyncio
import base64
import random
import shutil
import signal
import time
import uuid
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from ct_stream.local.processes import ChildProcess, LocalError, require_free_port
from ct_stream.problems import said_by

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BROKERS = (1, 2, 3)
#: The jars that `make kafka-cluster` fetches (tools/fetch-kafka).
LIBS = Path(__file__).parents[2] / ".kafka" / "libs"
_READY_S = 90.0  #: measured: 4 s on two idle cores
_STOP_S = 40.0  #: a controlled shutdown hands its leaders over first
_ASK_S = 5.0
_POLL_S = 0.1
_CONFIG = "cluster.json"

_PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
# Nothing is acknowledged before two have it: one broker may die.
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
# A misspelt topic is an error.
auto.create.topics.enable=false
# Few threads, partitions and buffers: three brokers share two cores with the tests.
offsets.topic.num.partitions=6
transaction.state.log.num.partitions=6
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
# Not waiting for more members, as in Kafka's own example configuration; in production it is 3 s.
group.initial.rebalance.delay.ms=0
# A broker that died is missed sooner (9 s in production), and one that comes back is let in sooner: its last session
# must have ended.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
# Looks often enough for a test of compaction to wait for it.
log.cleaner.backoff.ms=1000
"""

# While a broker is away the others log every second, with a stack trace, that they cannot reach it.
_LOGGING = """\
appender.stdout.type=Console
appender.stdout.name=stdout
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1}: %m%n
rootLogger.level=WARN
rootLogger.appenderRef.stdout.ref=stdout
logger.network.name=org.apache.kafka.clients.NetworkClient
logger.network.level=ERROR
logger.fetcher.name=kafka.server.ReplicaFetcherThread
logger.fetcher.level=OFF
logger.sender.name=kafka.server.RemoteLeaderEndPoint
logger.sender.level=OFF
"""

# The C1 compiler and the serial collector start fastest; a broker at rest takes 280 MB.
_JAVA = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFiles:
    """Where a cluster keeps its configuration, data and logs, and how its brokers are run."""

    folder: Path
    libs: Path = LIBS
    nodes: tuple[int, ...] = BROKERS
    more: str = ""  #: properties of every broker, which take the place of ours

    def command(self, node: int) -> list[str]:
        """Return the command that runs one broker in the foreground."""
        return [*self._java(), "kafka.Kafka", str(self._properties(node))]

    def log(self, node: int) -> Path:
        """Return what one broker says."""
        return self.folder / f"broker-{node}.log"

    def port(self, node: int) -> int:
        """Return where clients find one broker."""
        for line in self._properties(node).read_text().splitlines():
            if line.startswith("advertised.listeners="):
                return int(line.rpartition(":")[2])
        raise LocalError(f"{self._properties(node)} names no address; remove {self.folder} and start again")

    @property
    def bootstrap(self) -> str:
        """Return the addresses for CT_KAFKA_BOOTSTRAP."""
        return ",".join(f"127.0.0.1:{self.port(node)}" for node in self.nodes)

    @property
    def is_formatted(self) -> bool:
        """Return whether the brokers have storage."""
        return (self.folder / "formatted").exists()

    async def format(self) -> None:
        """Choose ports, write the configuration and format the storage of each broker. Raises LocalError."""
        if not any(self.libs.glob("kafka_*.jar")):
            raise LocalError(f"Apache Kafka is not in {self.libs}; fetch it with `make kafka-cluster`")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        ports = free_ports(2 * len(self.nodes))
        controllers = dict(zip(self.nodes, ports[len(self.nodes) :], strict=True))
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in controllers.items())
        for node, port in zip(self.nodes, ports, strict=False):
            self._properties(node).write_text(
                _PROPERTIES.format(
                    node=node,
                    voters=voters,
                    port=port,
                    controller_port=controllers[node],
                    data=self.folder / f"data-{node}",
                )
                + self.more.format(port=port, controller_port=controllers[node])
            )
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        formats = [
            ChildProcess(
                [
                    *(*self._java(), "kafka.tools.StorageTool", "format"),
                    f"--cluster-id={cluster_id}",  # as one word: an id may begin with a hyphen and look like an option
                    *("--config", str(self._properties(node))),
                ],
                name=f"the formatting of broker {node}",
                log_path=self.folder / f"format-{node}.log",
            )
            for node in self.nodes
        ]
        try:
            for each in formats:
                each.start()
            async with asyncio.timeout(_READY_S):
                for each in formats:
                    if await each.wait():
                        each.check_running()
        finally:
            for each in formats:
                with suppress(LocalError):
                    await each.kill()
        (self.folder / "formatted").touch()

    def _properties(self, node: int) -> Path:
        return self.folder / f"broker-{node}.properties"

    def _java(self) -> list[str]:
        java = shutil.which("java")
        if java is None:
            raise LocalError("java is not installed; Apache Kafka needs Java 17: apt-get install default-jre-headless")
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [java, *_JAVA, logging, "-cp", f"{self.libs}/*"]


def free_ports(number: int) -> list[int]:
    """Return free ports below those that the kernel gives to clients: a broker that is down must find its own again."""
    found: list[int] = []
    while len(found) < number:
        port = random.randint(20000, 29999)
        with suppress(LocalError):
            require_free_port(port, "a broker")
            if port not in found:
                found.append(port)
    return found


class KafkaCluster:
    """Run brokers, fresh, for as long as the `async with` lasts: three, or as many as are named.

    Data stays in the folder while it lasts: a broker that was killed comes back with what it had.
    """

    def __init__(self, folder: Path, libs: Path = LIBS, *, nodes: tuple[int, ...] = BROKERS, more: str = "") -> None:
        """`more`: properties that take the place of ours; `{port}` and `{controller_port}` in it are the broker's."""
        self.files = ClusterFiles(folder=folder, libs=libs, nodes=nodes, more=more)
        self._brokers: dict[int, ChildProcess] = {}
        self._paused: set[int] = set()

    async def __aenter__(self) -> Self:
        await self.files.format()
        try:
            await asyncio.gather(*map(self._launch, self.files.nodes))
            await self.wait_healthy()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        """Kill all: nobody will read what they have."""
        self._paused.clear()
        await asyncio.gather(*(broker.kill() for broker in self._brokers.values()))
        self._brokers.clear()

    @property
    def bootstrap(self) -> str:
        """Return the addresses of all brokers for CT_KAFKA_BOOTSTRAP, whether they run or not."""
        return self.files.bootstrap

    @property
    def running(self) -> list[int]:
        """Return the brokers whose process lives, paused ones too."""
        return [node for node, broker in self._brokers.items() if broker.exit_code() is None]

    @property
    def _serving(self) -> list[int]:
        return [node for node in self.running if node not in self._paused]

    def pid(self, node: int) -> int:
        """Return the process of one broker."""
        return self._brokers[node].pid

    async def start(self, *nodes: int) -> None:
        """Start brokers with the data that they have; come back when they accept connections."""
        await asyncio.gather(*(self._launch(node) for node in nodes if node not in self.running))

    async def stop(self, *nodes: int) -> None:
        """Let brokers hand over their leaders and end, as at an upgrade."""
        await asyncio.gather(*(self._brokers[node].stop(_STOP_S) for node in nodes))

    async def kill(self, *nodes: int) -> None:
        """End brokers at once (SIGKILL): what the kernel has not, is gone."""
        for node in nodes:
            self._brokers[node].send(signal.SIGKILL)
            self._paused.discard(node)
        await asyncio.gather(*(self._brokers[node].wait() for node in nodes))

    def pause(self, *nodes: int) -> None:
        """Let brokers hang (SIGSTOP): their connections stay open and silent."""
        for node in nodes:
            self._brokers[node].send(signal.SIGSTOP)
            self._paused.add(node)

    def resume(self, *nodes: int) -> None:
        """Let paused brokers continue (SIGCONT)."""
        for node in nodes:
            self._brokers[node].send(signal.SIGCONT)
            self._paused.discard(node)

    async def repair(self) -> None:
        """Bring every broker back, and wait until nothing is missing."""
        self.resume(*self._paused)
        await self.start(*self.files.nodes)
        await self.wait_healthy()

    async def wait_healthy(self, within_s: float = _READY_S) -> None:
        """Wait until all that run serve, and are in sync in each partition. Raises LocalError."""
        deadline = time.monotonic() + within_s
        while (trouble := await trouble_of(self.admin(), self._serving)) is not None:
            if time.monotonic() > deadline:
                raise LocalError(f"Kafka is not well after {within_s:g} s: {trouble} (see {self.files.folder})")
            await asyncio.sleep(_POLL_S)

    async def leader(self, topic: str, partition: int) -> int:
        """Return the broker that leads a partition."""
        async with self.admin() as admin:
            (described,) = await admin.describe_topics([topic])
        return next(int(p["leader"]) for p in described["partitions"] if p["partition"] == partition)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """Lend an admin client that knows the brokers that answer now."""
        client = AIOKafkaAdminClient(
            bootstrap_servers=",".join(f"127.0.0.1:{self.files.port(node)}" for node in self._serving),
            request_timeout_ms=int(_ASK_S * 1000),
        )
        try:
            await client.start()
            yield client
        finally:
            await client.close()

    async def _launch(self, node: int) -> None:
        broker = ChildProcess(
            self.files.command(node),
            name=f"Kafka broker {node}",
            log_path=self.files.log(node),
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGKILL,
        )
        require_free_port(self.files.port(node), broker.name)
        broker.start()
        self._brokers[node] = broker
        try:
            async with asyncio.timeout(_READY_S):
                while not await port_is_open(self.files.port(node)):
                    broker.check_running()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise LocalError(f"{broker.name} does not listen after {_READY_S:g} s; see {broker.log_path}") from error


async def trouble_of(admin: Any, expected: list[int]) -> str | None:
    """Return what a cluster of these brokers lacks: one of them, a leader, or a replica in sync; None for nothing."""
    try:
        async with admin as client:
            present = {int(broker["node_id"]) for broker in (await client.describe_cluster())["brokers"]}
            topics = await client.describe_topics()
    except (KafkaError, OSError, TimeoutError) as error:
        return f"it does not answer: {said_by(error)}"
    if missing := sorted(set(expected) - present):
        return f"broker {missing[0]} has not joined"
    for topic in topics:
        for partition in topic["partitions"]:
            name = f"{topic['topic']}[{partition['partition']}]"
            # The controller believes in a killed broker until its session ends, 9 s later.
            if partition["leader"] not in expected:
                return f"{name} has no leader that lives"
            if len(partition["isr"]) < min(len(expected), len(partition["replicas"])):
                return f"{name} has {len(partition['isr'])} replicas in sync"
    return None


async def port_is_open(port: int) -> bool:
    """Return whether somebody listens. A Kafka client would log each refused attempt as an error."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
