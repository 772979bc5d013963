"""What the job types of the acceptance tests run, in processes of the server's own workers."""

import json
import os
import time
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=2)
def _events(path: str) -> list[tuple[str, datetime]]:
    lines = Path(path).read_text("utf-8").split("\n")
    found = (json.loads(line) for line in lines if line)
    return [(event["id"], datetime.fromisoformat(event["event_time"])) for event in found]


def ingest(batch: Any) -> None:
    """Claim the events of the window, and write what is fresh under (batch, fencing token).

    Where a batch begins in a month of `dies_in`, the first attempt dies with its output written and nothing completed.
    """
    window = batch.window
    keys = [key for key, moment in _events(batch.params["events"]) if window.start <= moment < window.end]
    fresh = batch.claim(keys)
    out = Path(batch.params["out"], batch.backfill_id)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{batch.batch_id}.{batch.fencing_token}.json").write_text(json.dumps(fresh), "utf-8")
    if batch.attempt == 1 and f"{window.start:%Y-%m}" in batch.params.get("dies_in", ()):
        os._exit(3)


def ingest_slowly(batch: Any) -> None:
    """The same, with time to be interrupted in."""
    ingest(batch)
    time.sleep(0.3)
