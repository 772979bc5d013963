"""What workers ask for and say about batches, and what they are answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jobengine.backfill.attempts import Beat, Checkpoint, ClaimedBatch, Events
from jobengine.backfill.dispatcher import Cause
from jobengine.backfill.reports import error_text
from jobengine.errors import JobengineError

HandlerKind = Literal["embedded", "external"]


@dataclass(frozen=True, slots=True)
class Claim:
    """Ask for up to *most* batches; each runs under an admission of kind ``backfill``, or it does not run."""

    kind: HandlerKind
    job_types: Sequence[str]
    most: int
    client_id: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The batch is done, and its claims are final; *events* None means: as last reported. Saying so again is fine."""

    batch_id: str
    fencing_token: int
    events: Events | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The attempt ended for *cause*, and its claims are free again."""

    batch_id: str
    fencing_token: int
    cause: Cause
    error: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The attempt lives on; a *checkpoint* makes everything claimed so far final."""

    batch_id: str
    fencing_token: int
    checkpoint: Checkpoint | None
    events: Events | None


Word: TypeAlias = Completion | Failure | Heartbeat
Operation: TypeAlias = Claim | Word
Outcome: TypeAlias = list[ClaimedBatch] | Beat | JobengineError | None


def failed(batch_id: str, fencing_token: int, error: str, *, retryable: bool) -> Failure:
    """Return what a worker says whose attempt failed."""
    return Failure(batch_id, fencing_token, Cause.FAILED if retryable else Cause.HOPELESS, error_text(error))


def given_back(batch_id: str, fencing_token: int) -> Failure:
    """Return what a worker says that leaves: claimable again at once, and no attempt of the batch is counted."""
    return Failure(batch_id, fencing_token, Cause.GIVEN_BACK, "the worker stopped")
