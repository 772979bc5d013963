"""How a handler ended."""

from dataclasses import dataclass
from typing import TypeAlias

from jobengine.backfill.attempts import Events


@dataclass(frozen=True, slots=True)
class Completed:
    """The batch is done; *events* None means: as last reported."""

    events: Events | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed; a *retryable* one is tried again later."""

    error: str
    retryable: bool


Outcome: TypeAlias = Completed | Failed
