"""What does docs/failures.md say? `python -m tests.documents.failures_doc > docs/failures.md` writes it."""

from __future__ import annotations

from ct_stream.gate.failures import FAILURE_MEANINGS, FailureCode

_HEAD = """\
# Failure codes

Generated from `ct_stream/gate/failures.py` by `python -m tests.documents.failures_doc`; a test holds the two equal.

A FAIL is final. Its code is in `outreach.company_target_errors.failure_code` and in `failure_code` of `ct.fail`;
`blocking_reason` names the cause in one sentence. A company that waits has no code: see `outreach.ct_held`.

| code | stage | meaning | what to do | escalate to |
|---|---|---|---|---|
"""
_TAIL = """
`CT-I-ALREADY-PROCESSED` is no outcome. It is counted and logged, and no row is written. The company's recorded outcome
is published if that is still to be done.
"""
_STAGES = {"I": "I (input)", "M": "M (middle)"}


def failures_markdown() -> str:
    """Return docs/failures.md, one row for each code of the runbook."""
    return _HEAD + "".join(_row(code) for code in FailureCode) + _TAIL


def _row(code: FailureCode) -> str:
    meaning = FAILURE_MEANINGS[code]
    cells = (f"`{code}`", _STAGES[code.imo_stage], meaning.meaning, meaning.action, meaning.escalate_to)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    print(failures_markdown(), end="")
