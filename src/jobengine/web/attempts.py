"""What a worker may ask for its attempt besides the calls of every worker: a token of its own, and to be rid of it."""

import msgspec
from litestar import Response, Router, post

from jobengine.audit.act import Act
from jobengine.authority.tokens import BatchAttempt
from jobengine.errors import Forbidden
from jobengine.storage.batches import give_back, heartbeat
from jobengine.storage.database import Transaction
from jobengine.web.edge import Answer, Edge, known_id, needs

WORK = needs("orch:execute")


class Attempt(msgspec.Struct, forbid_unknown_fields=True):
    """An attempt at a batch, by its fencing token."""

    fencing_token: int


class AttemptToken(msgspec.Struct):
    """An access token that speaks for one attempt alone, while its lease lives."""

    token: str


@post("/batches/{batch_id:str}/token", opt=WORK, status_code=200)
async def give_token(edge: Edge, batch_id: str, data: Attempt) -> Response[AttemptToken]:
    """Give a token for a handler that shall speak for this attempt and nothing else; it is a sign of life, too."""
    _check_bound(edge, batch_id, data)

    async def work(tx: Transaction, act: Act) -> Answer:
        await heartbeat(tx, known_id(batch_id, "batch"), data.fencing_token, None, None)
        attempt = BatchAttempt(tx.tenant_id, batch_id, data.fencing_token, act.principal.client_id)
        return Answer(200, AttemptToken(edge.plane.token_for_batch(attempt)), {"Cache-Control": "no-store"})

    return await edge.change(work)


@post("/batches/{batch_id:str}/release", opt=WORK, status_code=204)
async def release_batch(edge: Edge, batch_id: str, data: Attempt) -> Response[None]:
    """Give a batch back unfinished, because the worker leaves: claimable at once, and no attempt is counted."""
    _check_bound(edge, batch_id, data)

    async def work(tx: Transaction, act: Act) -> Answer:  # noqa: ARG001 - the signature of a work
        await give_back(tx, known_id(batch_id, "batch"), data.fencing_token)
        return Answer(204)

    return await edge.change(work)


def _check_bound(edge: Edge, batch_id: str, data: Attempt) -> None:
    if not edge.principal.may_work_on(batch_id, data.fencing_token):
        raise Forbidden("this token speaks for another attempt at a batch")


attempts = Router("/", route_handlers=[give_token, release_batch], tags=["batches"])
