"""What happened to one company: its event, each question with its answer, its outcome, its rows?"""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

import orjson

from ct_stream.gate.failures import FAILURE_MEANINGS, FailureCode
from ct_stream.gate.output_stage import rfc3339
from ct_stream.gate.questions import ControlAnswer, MailboxAnswer, MxAnswer, SpineAnswer, VerifyAnswer
from ct_stream.gate.transcript import Exchange, from_json
from ct_stream.ops.reader import reader
from ct_stream.ops.replay import Record, replay
from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.stream.topology import CT_REJECTED, names_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from ct_stream.gate.questions import Attempt
    from ct_stream.settings import Settings

Story = dict[str, Any]


async def story(settings: Settings, outreach_id: UUID) -> Story:
    """Return all that is known of a company; `state` is decided, waiting, stuck, rejected, not_seen or unknown.

    Of a company that the gate's tables do not know, ct.rejected is searched where CT_KAFKA_BOOTSTRAP is set.
    """
    async with reader(settings) as read:
        spine = await read.row("story_spine", outreach_id)
        outcome = await read.row("story_outcome", outreach_id)
        undecided = await read.row("story_pass", outreach_id)
        target = await read.row("story_target", outreach_id)
        errors = await read.rows("story_errors", outreach_id)
    if outcome is not None:
        state = "decided"
    elif undecided is not None:
        state = undecided["state"]
    else:
        state = "unknown" if spine is None else "not_seen"
    rejects: list[Record] | None = None
    trouble: str | None = None
    if outcome is None and undecided is None and settings.kafka_bootstrap is not None:
        try:
            rejects = [_reject(record) async for record in _rejected(settings, outreach_id)]
        except ServiceTrouble as error:
            trouble = str(error)
        state = "rejected" if rejects else state
    return {
        "outreach_id": outreach_id,
        "state": state,
        "spine": None if spine is None else dict(spine),
        "outcome": None if outcome is None else _decoded(dict(outcome), "transcript"),
        "undecided": None if undecided is None or outcome is not None else _decoded(dict(undecided), "answers"),
        "company_target": None if target is None else dict(target),
        "company_target_errors": [dict(row) for row in errors],
        "rejects": rejects,  # None: not looked for
        "rejects_trouble": trouble,
        "rejects_topic": names_of(settings).ct_rejected,
    }


async def _rejected(settings: Settings, outreach_id: UUID) -> AsyncIterator[Record]:
    """Yield the records of ct.rejected that name a company, in any place and in any spelling of its id."""
    names = (str(outreach_id), outreach_id.hex)
    async with aclosing(replay(replace(settings, postgres_ops_dsn=None), topic=CT_REJECTED)) as records:
        async for record in records:
            text = f"{record['key']} {record['value']}".lower()
            if any(name in text for name in names):
                yield record


def _reject(record: Record) -> Record:
    """Return what people need of a record of ct.rejected: why, and where the original is."""
    headers = dict(record["headers"])
    where = {name: headers.get(f"ct_source_{name}") for name in ("topic", "partition", "offset")}
    return {"at": record["time"], "reason": record["unreadable"], "offset": record["offset"], "source": where}


def story_lines(told: Story) -> Iterator[str]:
    """Yield the story in plain words."""
    yield f"company    {told['outreach_id']}"
    spine = told["spine"]
    yield f"spine      {'no row' if spine is None else 'domain ' + ascii(spine['domain'])}"
    outcome, undecided = told["outcome"], told["undecided"]
    known = outcome or undecided
    if known is None:
        for reject in told["rejects"] or ():
            source = reject["source"]
            yield (
                f"rejected   at {reject['at']}: {reject['reason']} (event {source['topic']} partition "
                f"{source['partition']} offset {source['offset']}); it is on {told['rejects_topic']}"
            )
        if told["rejects_trouble"]:
            yield f"rejected?  {told['rejects_topic']} cannot be searched: {told['rejects_trouble']}"
        if told["rejects"]:
            yield "state      rejected: its event cannot be read; upstream corrects it and publishes it again"
        elif spine is None:
            yield "state      unknown: no spine row, no outcome, no wait"
        else:
            yield "state      no worker has taken up an event of it yet; publish one with `ct-stream publish`"
        return
    if known["event_topic"] is not None:
        yield f"event      {known['event_topic']} partition {known['event_partition']} offset {known['event_offset']}"
    for line in exchange_lines(known.get("transcript") or known.get("answers") or []):
        yield f"  {line}"
    if undecided is not None:
        yield f"state      {undecided['state']} since {rfc3339(undecided['since'])}: {undecided['reason']}"
        yield f"why        {undecided['detail']}"
        yield f"ends when  {undecided['what_ends_it']}"
        if undecided["traceback"]:
            yield from (f"  {line}" for line in undecided["traceback"].splitlines())
        return
    yield from _outcome_lines(told)


def exchange_lines(values: list[dict[str, Any]]) -> Iterator[str]:
    """Yield each question with its answer, one line an attempt, and who heard it where that was not always the same.

    A transcript of another version is shown as it is.
    """
    try:
        exchanges = from_json(values)
    except (KeyError, ValueError, TypeError):
        for value in values:
            yield orjson.dumps(value).decode()
        return
    # The spine row comes from Postgres, and says nothing of a worker's way.
    hearers = ["" if exchange.key == "spine" else exchange.by for exchange in exchanges]
    are_several, last = len(set(hearers) - {""}) > 1, ""
    for number, (exchange, by) in enumerate(zip(exchanges, hearers, strict=True), 1):
        first, *more = _answer_lines(exchange)
        if are_several and by not in ("", last):
            last = by
            yield f"    heard by worker {by}:"
        if exchange.aside:
            more.append("kept: an answer before it is void, and it serves if this question comes up again")
        if exchange.remembered:
            more.append(f"remembered: this is what it answered for another company of this domain at {exchange.at}")
        yield f"{number:2}. {_question(exchange)}: {first}"
        yield from (f"    {'':{len(_question(exchange))}}  {line}" for line in more)


def _method_details(target: dict[str, Any]) -> str:
    """Return what is known of a method, in brackets. What was decided before the gate came may lack it, or be words."""
    details = [target["method_type"], target["confidence_score"]]
    with suppress(TypeError, ValueError):
        details[1] = f"{float(target['confidence_score']):g}"
    if str(target["is_catchall"]).lower() in ("true", "t", "yes", "1"):
        details.append("catch-all")
    words = ", ".join(str(detail) for detail in details if detail is not None)
    return f" ({words})" if words else ""


def _outcome_lines(told: Story) -> Iterator[str]:
    outcome, target = told["outcome"], told["company_target"]
    word = outcome["outcome"] if outcome["failure_code"] is None else f"{outcome['outcome']} {outcome['failure_code']}"
    took = (
        ""
        if outcome["duration_ms"] is None
        else f", {outcome['duration_ms'] / 1000:g} s after a worker first took it up"
    )
    yield f"outcome    {word} at {rfc3339(outcome['decided_at'])}{took}"
    if outcome["source"] != "gate":
        yield f"source     {outcome['source']}: this gate did not decide it"
    if target is not None and target["email_method"]:
        yield f"method     {target['email_method']}{_method_details(target)}"
    if outcome["reason"]:
        yield f"reason     {outcome['reason']}"
    try:
        said = FAILURE_MEANINGS[FailureCode(outcome["failure_code"])]
    except ValueError:
        pass
    else:
        yield f"runbook    {said.meaning}: {said.action}; escalate to {said.escalate_to}"
    if outcome["rules_version"]:
        yield f"rules      version {outcome['rules_version']}"
    status = "no row" if target is None else target["execution_status"]
    yield f"rows       company_target: {status}; company_target_errors: {len(told['company_target_errors'])}"
    if outcome["topic"] is None:
        yield "published  never: it was decided before the gate came"
    elif outcome["published_at"] is None:
        yield f"published  not yet, to {outcome['topic']}"
    else:
        yield f"published  to {outcome['topic']} at {rfc3339(outcome['published_at'])}"


def _question(exchange: Exchange) -> str:
    kind, _, rest = exchange.key.partition(":")
    match kind:
        case "spine":
            return "spine row"
        case "mx":
            return f"MX of {exchange.asked}"
        case "rcpt":
            return f"RCPT TO {exchange.asked} ({rest})"
        case "control":
            return f"does our own {rest.upper()} work"
        case "verify":
            return f"Tier-2 about {exchange.asked}"
    return exchange.key


def _answer_lines(exchange: Exchange) -> list[str]:
    match exchange.answer:
        case SpineAnswer(found=False):
            return ["none"]
        case SpineAnswer(domain=domain):
            return [f"domain {domain!a}"]
        case MxAnswer(status=status, hosts=hosts, detail=detail, resolver=resolver):
            parts = [status.value, ", ".join(hosts), detail, f"(resolver {resolver})" if resolver else ""]
            return [" ".join(part for part in parts if part)]
        case MailboxAnswer(attempts=attempts, is_private_policy=is_private_policy):
            lines = [_attempt_line(attempt) for attempt in attempts]
            return [*lines, "this domain's own policy: others talk to us"] if is_private_policy else lines
        case ControlAnswer(detail=detail):
            return [f"yes, {detail}" if detail else "yes"]
        case VerifyAnswer(status=status, detail=detail):
            return [f"{status.value} {detail}".strip()]
    assert_never(exchange.answer)


def _attempt_line(attempt: Attempt) -> str:
    where = f"{attempt.host} [{attempt.ip}]" if attempt.ip else attempt.host
    if attempt.reply is not None:
        said = f"{attempt.reply.code} {attempt.reply.enhanced} {attempt.reply.text}".replace("  ", " ").strip()
    else:
        said = f"{attempt.trouble} {attempt.detail}".strip()
    return f"{where} at {attempt.stage}: {said}"


def _decoded(row: dict[str, Any], column: str) -> dict[str, Any]:
    """Return the row with its JSON column as values."""
    return row | {column: orjson.loads(row[column]) if row[column] else []}
