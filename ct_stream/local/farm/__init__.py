"""The mail farm: scripted resolvers and mail servers on loopback, so that every company can be met without the net."""

from ct_stream.local.farm.faults import EVERYWHERE, ResolverMode, SmtpBlock, Stage
from ct_stream.local.farm.log import DnsQuery, FarmLog, Session
from ct_stream.local.farm.mailfarm import MailFarm
from ct_stream.local.farm.names import Company
from ct_stream.local.farm.remote import FarmClient, FarmProcess
from ct_stream.local.farm.scenarios import PATTERNS, SCENARIOS, Expected, Scenario

__all__ = [
    "EVERYWHERE",
    "PATTERNS",
    "SCENARIOS",
    "Company",
    "DnsQuery",
    "Expected",
    "FarmClient",
    "FarmLog",
    "FarmProcess",
    "MailFarm",
    "ResolverMode",
    "Scenario",
    "Session",
    "SmtpBlock",
    "Stage",
]
