"""The schemas that others read are the ones the gate checks against, and its events fit them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from ct_stream.gate.contracts import ALERT, CT_FAIL, CT_PASS, SPINE_CREATED, Contract
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.output_stage import Origin, Outcome, output_stage
from ct_stream.gate.questions import Attempt, MailboxAnswer, MxAnswer, MxStatus, SpineAnswer
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed, VerifiedBy

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = Path(__file__).parents[2]
_PUBLISHED = _ROOT / "schemas"
_PACKAGED = _ROOT / "ct_stream" / "gate" / "schemas"
_ID = UUID("3f0c6f0e-6f5e-4f6e-9a53-1f3c2f0f9a10")
_CONTRACTS = pytest.mark.parametrize("contract", [SPINE_CREATED, CT_PASS, CT_FAIL, ALERT], ids=lambda c: c.name)
_SPINE = Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example"))


def _decided(verdict: Passed | Failed, exchanges: Sequence[Exchange]) -> Outcome:
    return output_stage(
        Origin(outreach_id=_ID, topic="spine.created", partition=0, offset=7, correlation_id="import-2026-01"),
        verdict,
        exchanges,
        rules_version="1+0123abcd",
        decided_at=datetime(2026, 1, 7, 9, 30, tzinfo=UTC),
        duration_ms=42,
    )


def test_the_published_schemas_are_the_packaged_ones() -> None:
    """`schemas/` holds each packaged schema byte for byte, and no other event."""
    packaged = {path.name: path.read_bytes() for path in _PACKAGED.glob("*.json")}
    published = {path.name: path.read_bytes() for path in _PUBLISHED.glob("*.json")}
    assert packaged
    assert published == packaged


@_CONTRACTS
def test_every_example_in_a_schema_fits_it(contract: Contract) -> None:
    """What a reader copies from the schema is accepted."""
    examples = contract.schema["examples"]
    assert examples
    assert [contract.problem(example) for example in examples] == [None] * len(examples)


def test_a_pass_fits_ct_pass() -> None:
    """The bytes of a PASS, read back, fit the schema that other hubs read."""
    reply = Attempt(host="mx1.acme.example", stage=Stage.RCPT, ip="198.51.100.7", reply=Reply(code=250, text="ok"))
    outcome = _decided(
        Passed(
            domain="acme.example",
            method_type="info",
            email_method="info@acme.example",
            confidence=0.70,
            is_catchall=False,
            verified_by=VerifiedBy.SMTP,
        ),
        [
            _SPINE,
            Exchange(key="mx", answer=MxAnswer(status=MxStatus.FOUND, hosts=("mx1.acme.example",))),
            Exchange(key="rcpt:info", answer=MailboxAnswer(attempts=(reply,))),
        ],
    )
    body = json.loads(outcome.value)
    assert outcome.topic == "ct.pass"
    assert CT_PASS.problem(body) is None
    assert body["tools_used"] == ["TOOL-004", "TOOL-005"]


@pytest.mark.parametrize("code", [code for code in FailureCode if code is not FailureCode.ALREADY_PROCESSED])
def test_a_fail_of_every_code_fits_ct_fail(code: FailureCode) -> None:
    """The bytes of a FAIL, read back, fit the schema that other hubs read, whatever its code."""
    domain = None if code.imo_stage == "I" else "acme.example"
    outcome = _decided(Failed(code=code, reason="the domain has no MX records", domain=domain), [_SPINE])
    body = json.loads(outcome.value)
    assert outcome.topic == "ct.fail"
    assert CT_FAIL.problem(body) is None
    assert (body["failure_code"], body["imo_stage"], body["retry_allowed"]) == (code.value, code.imo_stage, False)


def test_the_toolbox_for_people_is_the_packaged_one() -> None:
    """The limits that the runbook points to are those that the worker reads by default."""
    shown = _ROOT / "ops" / "tooling" / "SNAP_ON_TOOLBOX.yaml"
    assert shown.read_bytes() == (_ROOT / "ct_stream" / "probes" / "SNAP_ON_TOOLBOX.yaml").read_bytes()
