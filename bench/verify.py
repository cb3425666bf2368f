"""`python -m bench.verify`: how much memory and time does `ct-stream verify` take for a million outcomes?

Plants decided companies, each with its event, its record and its rows, and each violation among them, on the embedded
broker and Postgres; then runs the command as a process of its own. Needs some 3 GB of memory for the broker.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import orjson

from ct_stream.local.broker import EmbeddedBroker
from ct_stream.local.postgres import EmbeddedPostgres
from ct_stream.settings import Settings
from ct_stream.store.migrate import migrate
from ct_stream.stream.topology import create_topics
from tests.conftest import PASSWORD, UPSTREAM
from tests.ops.planted import Place, many, plant_violations, well

_RUN = "import sys; from ct_stream.cli import main; main(sys.argv[1:])"


async def bench(outcomes: int) -> None:
    """Plant, compare, and print what it took and what was found."""
    with tempfile.TemporaryDirectory(prefix="ct-stream-bench-") as folder:
        async with EmbeddedBroker(Path(folder) / "broker") as broker, EmbeddedPostgres(durable=False) as postgres:
            connection = await asyncpg.connect(postgres.admin_dsn)
            await connection.execute(UPSTREAM)
            await migrate(postgres.admin_dsn)
            await connection.execute(f"ALTER ROLE ct_ops LOGIN PASSWORD '{PASSWORD}'")
            await connection.close()
            await create_topics(Settings(kafka_bootstrap=broker.bootstrap))
            place = Place(postgres.admin_dsn, broker.bootstrap)
            begun = time.monotonic()
            await place.plant(many(outcomes))
            await place.plant(well())
            planted = await plant_violations(place)
            print(f"planted {outcomes} outcomes in {time.monotonic() - begun:.0f} s", flush=True)
            env = {key: value for key, value in os.environ.items() if not key.startswith("CT_")} | {
                "CT_KAFKA_BOOTSTRAP": broker.bootstrap,
                "CT_POSTGRES_OPS_DSN": postgres.dsn("postgres", "ct_ops", PASSWORD),
                "TMPDIR": folder,
            }
            begun = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _RUN, "verify", "--grace", "1s", "--json"), env=env, stdout=subprocess.PIPE
            )
            watching = asyncio.create_task(peaks(process.pid, Path(folder)))
            out, _ = await process.communicate()
            rss_mb, spill_mb = await watching
            seconds = time.monotonic() - begun
    report = orjson.loads(out)
    found = {kind["kind"]: kind["count"] for kind in report["violations"] + report["notes"]}
    print(f"verify: exit {process.returncode}, {seconds:.1f} s, peak RSS {rss_mb:.0f} MB, spill {spill_mb:.0f} MB")
    print(f"compared: {report['checked']}")
    expected = {kind: len(companies) for kind, companies in planted.items()}
    if found != expected or process.returncode != 1:
        raise SystemExit(f"found {found}, planted {expected}")
    print(f"found each of the {len(expected)} planted kinds, and nothing else")


async def peaks(pid: int, folder: Path) -> tuple[float, float]:
    """Return the greatest resident memory of a process until it ends, and of its spill on disk, in MB."""
    rss_mb = spill_mb = 0.0
    while True:
        try:
            text = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240 - no disk behind it
        except FileNotFoundError:
            return rss_mb, spill_mb
        if "VmHWM" not in text:  # a zombie has none
            return rss_mb, spill_mb
        rss_mb = int(text.partition("VmHWM:")[2].split()[0]) / 1000
        spilt = sum(p.stat().st_size for p in folder.glob("ct-stream-verify-*/*"))  # noqa: ASYNC240
        spill_mb = max(spill_mb, spilt / 1e6)
        await asyncio.sleep(0.1)


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.verify", description=__doc__.splitlines()[0])
    parser.add_argument("--outcomes", type=int, default=1_000_000)
    asyncio.run(bench(parser.parse_args().outcomes))


if __name__ == "__main__":
    main()
