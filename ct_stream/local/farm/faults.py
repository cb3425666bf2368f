"""The faults on our own side that the farm plays now: resolvers, port 25, refusals."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

EVERYWHERE = "*"  #: in the place of a provider: every MX host refuses us


class ResolverMode(StrEnum):
    """How one resolver behaves."""

    OK = "ok"
    DOWN = "down"  #: no answer
    SERVFAIL = "servfail"
    REFUSED = "refused"
    NXDOMAIN_ALL = "nxdomain_all"  #: poisoned: no name exists
    WILDCARD = "wildcard"  #: poisoned: every name exists, with the same MX and address


class SmtpBlock(StrEnum):
    """How connections to port 25 are stopped on the way out, established ones included."""

    REFUSED = "refused"
    TIMEOUT = "timeout"


class Stage(StrEnum):
    """Where in the dialogue a refusal is spoken."""

    BANNER = "banner"
    MAIL = "mail"
    RCPT = "rcpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A reply about us, in place of the answer."""

    reply: str
    stage: Stage


class Faults:
    """The faults in force; each holds until it is lifted."""

    def __init__(self, resolvers: int, on_smtp_block: Callable[[SmtpBlock | None], None]) -> None:
        self._on_smtp_block = on_smtp_block
        self.resolvers = [ResolverMode.OK] * resolvers
        self.smtp_block: SmtpBlock | None = None
        self.refusals: dict[str, Refusal] = {}
        self.refused_clients: dict[str, Refusal] = {}

    def set_resolver(self, index: int, mode: ResolverMode | str) -> None:
        """Set how the resolver at that place in CT_DNS_SERVERS behaves."""
        self.resolvers[index] = ResolverMode(mode)

    def set_resolvers(self, mode: ResolverMode | str) -> None:
        """Set how all resolvers behave."""
        for index in range(len(self.resolvers)):
            self.set_resolver(index, mode)

    def block_smtp(self, mode: SmtpBlock | str | None) -> None:
        """Stop all SMTP; None lets it through again."""
        self.smtp_block = None if mode is None else SmtpBlock(mode)
        self._on_smtp_block(self.smtp_block)

    def refuse(self, provider: str, reply: str, stage: Stage | str = Stage.RCPT) -> None:
        """Let the hosts of that domain (or EVERYWHERE, or at an address) answer `reply` at that stage.

        "" at the banner: hang up.
        """
        self.refusals[provider] = Refusal(reply=reply, stage=Stage(stage))

    def accept(self, provider: str) -> None:
        """Lift the refusal."""
        self.refusals.pop(provider, None)

    def refuse_client(self, client: str, reply: str, stage: Stage | str = Stage.RCPT) -> None:
        """Let all hosts answer `reply` at that stage to who comes from this address, as a blocklist would have it."""
        self.refused_clients[client] = Refusal(reply=reply, stage=Stage(stage))

    def accept_client(self, client: str) -> None:
        """Take the address off the list."""
        self.refused_clients.pop(client, None)

    def refusal(self, domain: str, address: str, client: str, stage: Stage) -> str | None:
        """Return the reply that a host of `domain` at an address gives a client at that stage instead of its own."""
        named = map(self.refusals.get, (domain, address, EVERYWHERE))
        for refusal in (self.refused_clients.get(client), *named):
            if refusal is not None and refusal.stage is stage:
                return refusal.reply
        return None

    def clear(self) -> None:
        """Lift all faults."""
        self.set_resolvers(ResolverMode.OK)
        self.refusals.clear()
        self.refused_clients.clear()
        if self.smtp_block is not None:
            self.block_smtp(None)
