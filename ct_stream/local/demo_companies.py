"""Which companies does the demo put through the gate, and what must be decided of each?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle
from uuid import UUID

import orjson

from ct_stream.gate.failures import FailureCode
from ct_stream.local.farm import SCENARIOS, Expected

#: More misses among 50 look-ups would halt the spine control: a real gate asks a person then.
_NOT_FOUND, _NO_DOMAIN = 11, 8
_NO_DOMAINS = (None, "", "   ", "localhost", "https://acme.example/about", "192.0.2.7", "acme..example", "acme example")
#: One company each at most: five servers that refuse us would halt SMTPCheck until a person resumes it.
_REFUSING = frozenset({"banner554", "mailrefused", "blocklist", "blockafter3"})
#: What most of the spine looks like.
_USUAL = (
    "info",
    "catchall",
    "allreject",
    "info",
    "firstdotlast",
    "contact",
    "nxdomain",
    "firstlast",
    "first",
    "refuse",
)
_SHARED = (("info-shared.example", 8), ("catchall-shared.example", 5), ("allreject-shared.example", 4))
_AT_PROVIDER = ("info", "catchall", "allreject", "info", "last", "fdotlast")
_PROVIDER_COMPANIES = 24
LEAST = 140  #: fewer would leave kinds out
_DUPLICATES = 40
_KEYLESS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One company: what the spine holds of it, and what the gate must decide."""

    outreach_id: UUID
    kind: str  #: for people: the scenario, or what is wrong with the spine row
    in_spine: bool
    domain: str | None
    expected: Expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of spine.created."""

    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All companies, and the records in the order in which they are sent."""

    companies: tuple[Planned, ...]
    records: tuple[Record, ...]
    duplicates: int
    unreadable: int


def make_plan(count: int, seed: int = 7) -> Plan:
    """Return a plan of `count` companies, the same for each run with one seed."""
    rng = random.Random(seed)
    companies = _companies(count, rng)
    rng.shuffle(companies)
    records = [_record(company) for company in companies]
    repeated = [_record(company) for company in rng.sample([c for c in companies if c.in_spine], _DUPLICATES)]
    unreadable = _unreadable(rng)
    for place in rng.sample(range(len(records)), _KEYLESS):
        records[place] = Record(key=None, value=records[place].value)
    everything = records + repeated + unreadable
    rng.shuffle(everything)
    return Plan(
        companies=tuple(companies),
        records=tuple(everything),
        duplicates=len(repeated),
        unreadable=len(unreadable),
    )


def _companies(count: int, rng: random.Random) -> list[Planned]:
    made: list[Planned] = []

    def add(kind: str, domain: str | None, expected: Expected, *, in_spine: bool = True) -> None:
        outreach_id = UUID(int=rng.getrandbits(128), version=4)
        made.append(Planned(outreach_id=outreach_id, kind=kind, in_spine=in_spine, domain=domain, expected=expected))

    def add_scenario(name: str, domain: str, kind: str = "") -> None:
        add(kind or name, domain, SCENARIOS[name].expected)

    for _ in range(_NOT_FOUND):
        add("not in the spine", None, Expected(outcome=FailureCode.NOT_FOUND.value), in_spine=False)
    for _, domain in zip(range(_NO_DOMAIN), cycle(_NO_DOMAINS), strict=False):
        add(f"spine domain {domain!a}", domain, Expected(outcome=FailureCode.NO_DOMAIN.value))
    for name, scenario in SCENARIOS.items():
        if name != "control" and scenario.expected.outcome != "HELD":
            add_scenario(name, "idn-bücher.example" if name == "idn" else f"{name}-demo.example")
    add_scenario("info", "  Info-Untidy.EXAMPLE. ", "a domain that needs its canonical form")
    for domain, companies in _SHARED:
        for _ in range(companies):
            add_scenario(domain.partition("-")[0], domain, f"one of {companies} companies of {domain}")
    for number, name in zip(range(_PROVIDER_COMPANIES), cycle(_AT_PROVIDER), strict=False):
        add_scenario(name, f"{name}-at-bigmail-{number}.example", f"{name} at a provider that many share")
    for number, name in enumerate(cycle(_USUAL)):
        if len(made) >= count:
            break
        assert name not in _REFUSING
        add_scenario(name, f"{name}-usual{number}.example")
    return made


def _record(company: Planned) -> Record:
    text = str(company.outreach_id)
    value = {"outreach_id": text, "schema_version": 1, "correlation_id": f"demo-{text[:8]}"}
    return Record(key=text.encode(), value=orjson.dumps(value))


def _unreadable(rng: random.Random) -> list[Record]:
    """Return records that must end on ct.rejected, one for each way of being unreadable."""
    ids = [str(UUID(int=rng.getrandbits(128), version=4)) for _ in range(3)]
    return [
        Record(key=b"a", value=b"not JSON"),
        Record(key=b"b", value=b""),
        Record(key=b"c", value=None),
        Record(key=b"d", value=b'["a list"]'),
        Record(key=b"e", value=b'{"domain": "acme.example"}'),
        Record(key=b"f", value=b'{"outreach_id": "not-a-uuid"}'),
        Record(key=b"g", value=b"\xff\xfe\x00\x01"),
        Record(key=ids[0].encode(), value=orjson.dumps({"outreach_id": ids[0], "schema_version": 99})),
        Record(key=ids[1].encode(), value=orjson.dumps({"outreach_id": ids[2]})),
        Record(key=b"h", value=orjson.dumps({"outreach_id": ids[2], "padding": "x" * 300_000})),
    ]
