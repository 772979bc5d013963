"""The process in which ``python:`` handlers run: one JSON line in, one out, until standard input ends.

A handler is ``def handle(batch)``; what it prints goes to standard error. The supervisor answers claims and saves.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Any, TextIO

from jobengine.worker.launch import die_with

MOST_KEYS = 10_000
# Two batches may wait for each other's keys: after two minutes one gives up, and its keys are free.
BUSY_SECONDS = 120.0
FIRST_BUSY_PAUSE_SECONDS = 0.1
LONGEST_BUSY_PAUSE_SECONDS = 5.0
MOST_ERROR_CHARACTERS = 4_000


class BusyKeysError(Exception):
    """Another live attempt holds keys of this batch and does not let go."""


@dataclass(frozen=True, slots=True)
class Window:
    """The half-open window of event time."""

    start: datetime
    end: datetime


@dataclass(slots=True)
class Batch:
    """What a handler gets; `counts` is what is reported, and a handler may count its own failures in ``failed``."""

    batch_id: str
    backfill_id: str
    job_type: str
    source: str
    window: Window
    params: dict[str, Any]
    attempt: int
    fencing_token: int
    checkpoint: Any
    _line: "Line" = field(repr=False)
    counts: dict[str, int] = field(default_factory=lambda: {"processed": 0, "duplicates": 0, "failed": 0})

    def claim(self, keys: Iterable[str]) -> list[str]:
        """Return those of *keys* that this attempt shall process; waits for keys that another attempt holds.

        Raises ValueError for a key that is not 1 to 256 bytes, and BusyKeysError after two minutes.
        """
        wanted = list(dict.fromkeys(keys))
        fresh: list[str] = []
        for start in range(0, len(wanted), MOST_KEYS):
            fresh += self._claim(wanted[start : start + MOST_KEYS])
        return fresh

    def save(self, checkpoint: Any) -> None:
        """Make everything claimed so far final; the next attempt begins with *checkpoint*.

        Raises ValueError or TypeError for what is not JSON of at most 64 KiB.
        """
        self._line.ask({"save": checkpoint, "events": self.counts})
        self.checkpoint = checkpoint

    def _claim(self, keys: list[str]) -> list[str]:
        fresh: list[str] = []
        pause, waited = FIRST_BUSY_PAUSE_SECONDS, 0.0
        while True:
            answer = self._line.ask({"claim": keys})
            fresh += answer["fresh"]
            self.counts["processed"] += len(answer["fresh"])
            self.counts["duplicates"] += len(answer["duplicates"])
            keys = answer["busy"]
            if not keys:
                return fresh
            if waited >= BUSY_SECONDS:
                raise BusyKeysError(f"{len(keys)} events are held by another attempt")
            time.sleep(pause)
            waited, pause = waited + pause, min(2 * pause, LONGEST_BUSY_PAUSE_SECONDS)


class Line:
    """The line to the supervisor, kept to ourselves: neither a handler's print nor its input() meets it."""

    def __init__(self) -> None:
        self._inbox: TextIO = os.fdopen(os.dup(0), encoding="utf-8")
        self._outbox: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._turn = Lock()
        self._at_work = False
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)

    def next_batch(self) -> dict[str, Any] | None:
        """Wait for a batch; None when the supervisor has no more."""
        text = self._inbox.readline()
        self._at_work = bool(text)
        return json.loads(text) if text else None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the supervisor's answer; raises ValueError for what it refuses. Threads of a handler take turns."""
        text = json.dumps(question, allow_nan=False)
        with self._turn:
            if not self._at_work:
                raise RuntimeError("the batch has ended")
            self._send(text)
            answer = self._inbox.readline()
        if not answer:
            os._exit(1)
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise ValueError(found["error"])
        return found

    def end_batch(self, outcome: dict[str, Any]) -> None:
        """Tell how the batch ended; a thread that the handler left behind may ask nothing more."""
        with self._turn:
            self._at_work = False
            self._send(json.dumps(outcome))

    def _send(self, text: str) -> None:
        self._outbox.write(f"{text}\n")
        self._outbox.flush()


def main() -> None:
    """Serve batches until the supervisor closes standard input."""
    die_with(int(sys.argv[1]))
    line = Line()
    while request := line.next_batch():
        line.end_batch(_serve(request["handler"], _batch(request["batch"], line)))


def _serve(handler: str, batch: Batch) -> dict[str, Any]:
    try:
        _load(handler)(batch)
        return {"done": {name: max(0, int(batch.counts[name])) for name in ("processed", "duplicates", "failed")}}
    except Exception as error:  # noqa: BLE001 - whatever a handler raises is the outcome of its batch
        return {"failed": f"{type(error).__name__}: {error}"[:MOST_ERROR_CHARACTERS]}


def _batch(claimed: dict[str, Any], line: Line) -> Batch:
    window = Window(*(datetime.fromisoformat(claimed["window"][side]) for side in ("start", "end")))
    names = ("batch_id", "backfill_id", "job_type", "source", "params", "attempt", "fencing_token", "checkpoint")
    return Batch(window=window, _line=line, **{name: claimed[name] for name in names})


def _load(handler: str) -> Callable[[Batch], object]:
    module, _, name = handler.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    main()
