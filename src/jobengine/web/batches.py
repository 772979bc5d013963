"""Batches for workers: claim them, keep them, claim their events, end them."""

from typing import Annotated, Any

import msgspec
from litestar import Response, Router, post

from jobengine.audit.act import Act
from jobengine.backfill.attempts import Beat, Checkpoint, Events
from jobengine.backfill.reports import MAX_KEYS, check_checkpoint, check_keys
from jobengine.clock import format_time
from jobengine.errors import Forbidden, JobengineError
from jobengine.storage import batch_words as words
from jobengine.storage.batches import say
from jobengine.storage.database import Transaction
from jobengine.storage.events import claim_events
from jobengine.web.backfill_views import WindowView
from jobengine.web.edge import Answer, Edge, known_id, needs, respond
from jobengine.web.fields import JobType

WORK = needs("orch:execute")
MAX_EVENTS_BODY = 4 * 2**20

Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class Claim(msgspec.Struct, forbid_unknown_fields=True):
    """A worker's question for batches."""

    job_types: Annotated[list[JobType], msgspec.Meta(min_length=1, max_length=100)]
    max: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1


class EventsIn(msgspec.Struct, forbid_unknown_fields=True):
    """What the attempt did so far, all in all."""

    processed: Count = 0
    duplicates: Count = 0
    failed: Count = 0


class Heartbeat(msgspec.Struct, forbid_unknown_fields=True):
    """A sign of life; without a *checkpoint*, or with null, claims stay as they are."""

    fencing_token: int
    checkpoint: Any = None
    events: EventsIn | None = None


class EventKeys(msgspec.Struct, forbid_unknown_fields=True):
    """Event keys to claim."""

    fencing_token: int
    keys: Annotated[list[str], msgspec.Meta(max_length=MAX_KEYS)]


class Completion(msgspec.Struct, forbid_unknown_fields=True):
    """The end of a batch; with *events* null those that were last reported count."""

    fencing_token: int
    events: EventsIn | None = msgspec.field(default_factory=EventsIn)


class Failure(msgspec.Struct, forbid_unknown_fields=True):
    """The failure of an attempt; of *error* the first 4,096 characters are kept."""

    fencing_token: int
    error: str
    retryable: bool


class ClaimedBatchView(msgspec.Struct):
    """A batch to work on."""

    batch_id: str
    backfill_id: str
    job_type: str
    source: str
    window: WindowView
    params: dict[str, Any]
    attempt: int
    fencing_token: int
    lease_expires_at: str
    checkpoint: Any


class ClaimedBatches(msgspec.Struct):
    """Batches to work on."""

    batches: list[ClaimedBatchView]


class BeatView(msgspec.Struct):
    """The answer to a sign of life."""

    lease_expires_at: str
    cancel_requested: bool


class EventClaimView(msgspec.Struct):
    """Which of the keys to process."""

    fresh: list[str]
    duplicates: list[str]
    busy: list[str]


@post("/batches/claim", opt=WORK, status_code=200)
async def claim_batches(edge: Edge, data: Claim) -> Response[ClaimedBatches]:
    """Hand out batches of external job types."""
    if edge.principal.batch is not None:
        raise Forbidden("this token speaks for one batch and claims no other")

    return await _say(edge, words.Claim("external", data.job_types, data.max, edge.principal.client_id))


@post("/batches/{batch_id:str}/heartbeat", opt=WORK, status_code=200)
async def beat(edge: Edge, batch_id: str, data: Heartbeat) -> Response[BeatView]:
    """Keep a batch; a checkpoint makes what was claimed so far final."""
    _check_bound(edge, batch_id, data.fencing_token)
    check_checkpoint(data.checkpoint)
    checkpoint = None if data.checkpoint is None else Checkpoint(data.checkpoint)
    batch_id = known_id(batch_id, "batch")
    return await _say(edge, words.Heartbeat(batch_id, data.fencing_token, checkpoint, _events(data.events)))


@post("/batches/{batch_id:str}/events/claim", opt=WORK, status_code=200, request_max_body_size=MAX_EVENTS_BODY)
async def claim_keys(edge: Edge, batch_id: str, data: EventKeys) -> Response[EventClaimView]:
    """Tell which events this attempt shall process."""
    _check_bound(edge, batch_id, data.fencing_token)
    check_keys(data.keys)

    async def work(tx: Transaction, act: Act) -> Answer:  # noqa: ARG001 - the signature of a work
        found = await claim_events(tx, known_id(batch_id, "batch"), data.fencing_token, data.keys)
        return Answer(200, EventClaimView(found.fresh, found.duplicates, found.busy))

    return await edge.change(work)


@post("/batches/{batch_id:str}/complete", opt=WORK, status_code=204)
async def complete_batch(edge: Edge, batch_id: str, data: Completion) -> Response[None]:
    """End a batch well."""
    _check_bound(edge, batch_id, data.fencing_token)
    batch_id = known_id(batch_id, "batch")
    return await _say(edge, words.Completion(batch_id, data.fencing_token, _events(data.events)))


@post("/batches/{batch_id:str}/fail", opt=WORK, status_code=204)
async def fail_batch(edge: Edge, batch_id: str, data: Failure) -> Response[None]:
    """End an attempt badly."""
    _check_bound(edge, batch_id, data.fencing_token)
    batch_id = known_id(batch_id, "batch")
    return await _say(edge, words.failed(batch_id, data.fencing_token, data.error, retryable=data.retryable))


async def _say(edge: Edge, operation: words.Operation) -> Response[Any]:
    if not edge.has_idempotency_key:
        return respond(_answer(await edge.plane.batches.carry_out(edge.tenant_id, operation)), edge.trace_id)

    async def work(tx: Transaction, act: Act) -> Answer:  # noqa: ARG001 - the signature of a work
        return _answer(await say(tx, operation))

    # The answer is kept in the transaction that made it, so this one goes alone.
    return await edge.change(work)


def _answer(outcome: words.Outcome) -> Answer:
    match outcome:
        case None:
            return Answer(204)
        case Beat(lease_expires_at, cancel_requested):
            return Answer(200, BeatView(format_time(lease_expires_at), cancel_requested))
        case list():
            return Answer(
                200, ClaimedBatches([msgspec.convert(batch.as_json(), ClaimedBatchView) for batch in outcome])
            )
        case JobengineError():
            raise outcome


def _check_bound(edge: Edge, batch_id: str, fencing_token: int) -> None:
    if not edge.principal.may_work_on(batch_id, fencing_token):
        raise Forbidden("this token speaks for another attempt at a batch")


def _events(events: EventsIn | None) -> Events | None:
    return None if events is None else Events(events.processed, events.duplicates, events.failed)


batches = Router("/", route_handlers=[claim_batches, beat, claim_keys, complete_batch, fail_batch], tags=["batches"])
