"""Stage I: is this company in the spine, with a domain that can be asked?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.gate.domains import NotADomain, canonical_domain
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.verdicts import Failed

if TYPE_CHECKING:
    from ct_stream.gate.questions import SpineAnswer


def input_stage(spine: SpineAnswer) -> str | Failed:
    """Return the canonical domain, or the failure that ends the pass here."""
    if not spine.found:
        return Failed(code=FailureCode.NOT_FOUND, reason="outreach_id is not in the spine outreach.outreach")
    domain = canonical_domain(spine.domain)
    if isinstance(domain, NotADomain):
        return Failed(code=FailureCode.NO_DOMAIN, reason=domain.reason)
    return domain
