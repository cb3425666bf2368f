"""What meets a broker here meets Apache Kafka, too."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_MEETS_A_BROKER = re.compile(r"^from tests\.\S+ import .*\b(Stack|lend_broker)\b", re.MULTILINE)


def test_each_file_that_meets_a_broker_runs_on_apache_kafka() -> None:
    """`make test-kafka` names files, not folders: the others of a folder show nothing more there."""
    listed = re.search(r"^KAFKA_TESTS := ((?:.*\\\n)*.*)$", (_ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert listed is not None
    named = [_ROOT / name for name in listed[1].replace("\\", "").split()]
    assert all(path.exists() for path in named)
    for folder in ("contract", "faults", "kafka", "ops", "stream"):
        for file in (_ROOT / "tests" / folder).glob("test_*.py"):
            if _MEETS_A_BROKER.search(file.read_text("utf-8")):
                assert any(file.is_relative_to(path) for path in named), f"KAFKA_TESTS lacks {file.name}"


def test_each_producer_of_the_tests_waits_until_its_record_can_be_read() -> None:
    """With acks=1 a record is acknowledged before readers see it: 290 of 300 were not below the high watermark yet."""
    for file in (_ROOT / "tests").rglob("*.py"):
        for made in re.findall(r"AIOKafkaProducer\([^()]+(?:\([^()]*\)[^()]*)*\)", file.read_text("utf-8")):
            waits = ('acks="all"', "enable_idempotence=True", "transactional_id=")
            assert any(word in made for word in waits), f"{file.name}: {made} lacks acks"
