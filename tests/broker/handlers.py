"""What batches on workers of these tests do, in processes of those workers."""

import json
import time
from pathlib import Path
from typing import Any

from tests.acceptance import handlers

EVENTS_OF_A_BATCH = 20


def ingest(batch: Any) -> None:
    """Do as the handler of the long run does, with time to be interrupted in."""
    time.sleep(batch.params["seconds"])
    handlers.ingest(batch)


def write(batch: Any) -> None:
    """Claim the events of the window in two steps, and write what is fresh under (batch, fencing token)."""
    keys = [f"{batch.window.start:%Y-%m-%dT%H}/{number}" for number in range(EVENTS_OF_A_BATCH)]
    half = EVENTS_OF_A_BATCH // 2
    fresh = batch.claim(keys[:half])
    time.sleep(batch.params.get("seconds", 0))
    fresh += batch.claim(keys[half:])
    written = Path(batch.params["out"], f"{batch.batch_id}.{batch.fencing_token}.json")
    # Whole or not at all: the test reads while others write.
    half_written = written.with_suffix(".part")
    half_written.write_text(json.dumps(fresh), "utf-8")
    half_written.rename(written)


def linger(batch: Any) -> None:
    """Work until somebody ends it; the first attempt alone."""
    out = Path(batch.params["out"])
    (out / f"{batch.batch_id}.{batch.attempt}.{batch.fencing_token}").touch()
    if not (out / "go").exists():
        time.sleep(3_600)
