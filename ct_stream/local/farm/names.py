"""Which company, or which MX host, does a name belong to?"""

from dataclasses import dataclass
from functools import lru_cache

from ct_stream.local.farm.scenarios import ALL_SCENARIOS, PROVIDER, Expected, Mx, Scenario
from ct_stream.local.processes import LocalError

_ZONE = ".example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """A domain, the scenario it plays, and the provider whose host takes its mail (None: a host of its own)."""

    domain: str
    scenario: Scenario
    provider: str | None = None
    address: str | None = None  #: a hoster's machine, at which its own host is, with those of others

    @property
    def expected(self) -> Expected:
        """Return the outcome that the gate must reach."""
        if self.provider is not None and self.scenario.at_provider is not None:
            return self.scenario.at_provider
        return self.scenario.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class MxHost:
    """A host name, whose it is, and what it does before it hears a recipient."""

    name: str
    domain: str
    scenario: Scenario
    mx: Mx
    address: str | None = None  #: of the hoster's machine that it is a name of

    @property
    def is_shared(self) -> bool:
        """Return whether it is a provider's host, which takes mail for many domains."""
        return self.scenario is PROVIDER


class Names:
    """Read names; those that were added win over those that explain themselves."""

    def __init__(self) -> None:
        self._added: dict[str, Company] = {}
        self._providers: set[str] = set()

    def add(self, domain: str, scenario: str, provider: str | None = None, address: str | None = None) -> Company:
        """Let `domain` play `scenario`, behind `mx1.<provider>`, or with its own host at this address, if given."""
        if scenario not in ALL_SCENARIOS:
            raise LocalError(f"no scenario {scenario!r}; known are {', '.join(sorted(ALL_SCENARIOS))}")
        company = Company(domain=domain.lower(), scenario=ALL_SCENARIOS[scenario], provider=provider, address=address)
        self._added[company.domain] = company
        if provider is not None:
            self._providers.add(provider)
        return company

    def company(self, domain: str) -> Company | None:
        """Return the company with that domain; None when the farm has none."""
        return self._added.get(domain) or _parsed(domain)

    def mx_host(self, name: str) -> MxHost | None:
        """Return the MX host with that name; None when no company and no provider has it."""
        label, _, domain = name.partition(".")
        company = self.company(domain)
        if company is None:
            is_provider = domain in self._providers or (domain.endswith(_ZONE) and domain.count(".") == 1)
            if label == "mx1" and is_provider:
                return MxHost(name=name, domain=domain, scenario=PROVIDER, mx=Mx())
            return None
        for mx in company.scenario.mx:
            if label in (mx.label, mx.cname):
                return MxHost(name=name, domain=domain, scenario=company.scenario, mx=mx, address=company.address)
        return None


@lru_cache(maxsize=65536)
def _parsed(domain: str) -> Company | None:
    label = domain.removesuffix(_ZONE)
    if label == domain or "." in label:
        return None
    if label.startswith("xn--"):
        try:
            label = label[4:].encode().decode("punycode")
        except UnicodeError:
            return None
    scenario, _, rest = label.partition("-")
    if scenario not in ALL_SCENARIOS:
        return None
    provider = None
    if rest.startswith("at-"):
        provider = rest.removeprefix("at-").partition("-")[0] + _ZONE
    return Company(domain=domain, scenario=ALL_SCENARIOS[scenario], provider=provider)
