"""A farm in a process of its own is steered, read and ended from outside."""

from pathlib import Path

import aiodns
import pytest
from pycares import DNSResult, MXRecordData

from ct_stream.local.farm import FarmClient, FarmProcess
from ct_stream.local.processes import LocalError


async def mx_of_acme(farm: FarmClient) -> DNSResult:
    # A new resolver each time: c-ares keeps answers for their TTL.
    servers = farm.env["CT_DNS_SERVERS"].split(",")[:1]
    return await aiodns.DNSResolver(nameservers=servers, timeout=2, tries=1).query_dns("acme.example", "MX")


async def test_another_process_can_switch_the_farms_faults_and_read_its_log(tmp_path: Path) -> None:
    async with FarmProcess(tmp_path) as farm:
        await farm.add("acme.example", "info", "bigmail.example")
        answer = await mx_of_acme(farm)
        assert isinstance(answer.answer[0].data, MXRecordData)
        assert answer.answer[0].data.exchange == "mx1.bigmail.example"
        await farm.set_resolvers("refused")
        with pytest.raises(aiodns.error.DNSError):
            await mx_of_acme(farm)
        await farm.block_smtp("refused")
        await farm.refuse("bigmail.example", "550 5.7.1 No")
        await farm.clear_faults()
        assert (await mx_of_acme(farm)).answer
        assert (await farm.stats())["queries"] == 3
        assert [query.answer for query in (await farm.log()).queries()] == ["answer", "REFUSED", "answer"]
        with pytest.raises(LocalError, match="no scenario 'odd'"):
            await farm.add("acme.example", "odd")
        assert (tmp_path / "farm.json").exists()
    assert not (tmp_path / "farm.json").exists()
