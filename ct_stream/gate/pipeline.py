"""The single pass, from the spine's row to a verdict: stages I and M as one generator of questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.gate.input_stage import input_stage
from ct_stream.gate.middle_stage import Flow, middle_stage
from ct_stream.gate.questions import LookupSpine, SpineAnswer
from ct_stream.gate.verdicts import Failed

if TYPE_CHECKING:
    from uuid import UUID

    from ct_stream.gate.rules import Rules


def single_pass(outreach_id: UUID, rules: Rules, *, tier2_off: str | None) -> Flow:
    """Decide one company; each question is yielded once, and the verdict is the generator's return value."""
    spine = yield LookupSpine(outreach_id=outreach_id)
    assert isinstance(spine, SpineAnswer)
    domain = input_stage(spine)
    if isinstance(domain, Failed):
        return domain
    return (yield from middle_stage(outreach_id, domain, rules, tier2_off=tier2_off))
