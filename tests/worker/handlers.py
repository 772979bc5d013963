"""A ``python:`` handler in a process of its own: it plays the part that the parameters of its batch name."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def play(batch: Any) -> None:
    """Play the part named for this attempt; the last one is for all that follow."""
    parts = batch.params["parts"]
    globals()[f"_{parts[min(batch.attempt, len(parts)) - 1]}"](batch)


def _tell(batch: Any, **words: Any) -> None:
    """Leave a note that the test reads."""
    note = Path(batch.params["notes"]) / f"{batch.batch_id}.{batch.fencing_token}.json"
    told = json.loads(note.read_text()) if note.exists() else {"pid": os.getpid()}
    fresh = note.with_suffix(".new")
    fresh.write_text(json.dumps(told | words))
    fresh.rename(note)


def _work(batch: Any) -> None:
    fresh = batch.claim(batch.params["keys"])
    window = [f"{edge:%Y-%m-%dT%H:%M:%SZ}" for edge in (batch.window.start, batch.window.end)]
    _tell(batch, fresh=fresh, window=window, checkpoint=batch.checkpoint, attempt=batch.attempt)


def _talk(batch: Any) -> None:
    print("not a message", flush=True)
    os.write(1, b'{"done": {"processed": 99, "duplicates": 0, "failed": 0}}\n')
    subprocess.run(["sh", "-c", "echo from a shell; cat"], check=True)
    try:
        input()
    except EOFError:
        _work(batch)


def _raise(batch: Any) -> None:
    raise LookupError(f"no luck \x00 in attempt {batch.attempt}")


def _leave(batch: Any) -> None:
    batch.claim(batch.params["keys"])
    sys.exit(0)


def _die(batch: Any) -> None:
    batch.claim(batch.params["keys"])
    os._exit(3)


def _fall(batch: Any) -> None:
    batch.claim(batch.params["keys"])
    os.kill(os.getpid(), signal.SIGKILL)


def _save_and_die(batch: Any) -> None:
    first, *others = batch.params["keys"]
    batch.claim([first])
    batch.save({"at": first})
    batch.claim(others)
    os._exit(3)


def _sleep(batch: Any) -> None:
    child = subprocess.Popen(["sleep", "600"])
    _tell(batch, child=child.pid)
    time.sleep(600)


def _misuse(batch: Any) -> None:
    refused: list[str] = []
    for wrong in ("x" * 257, "", "a\x00"):
        try:
            batch.claim(["fine", wrong])
        except ValueError as error:
            refused.append(str(error))
    for wrong in (float("nan"), {"a": {1}}, "x" * 70_000):
        try:
            batch.save(wrong)
        except (ValueError, TypeError) as error:
            refused.append(str(error))
    _tell(batch, refused=refused)
    _work(batch)


def _look(batch: Any) -> None:
    _tell(batch, environment=dict(os.environ))
    _work(batch)


def _hold(batch: Any) -> None:
    batch.claim(batch.params["keys"])
    gate = Path(batch.params["notes"]) / "gate"
    _tell(batch, holds=True)
    while not gate.exists():
        time.sleep(0.02)


def _linger(batch: Any) -> None:
    _tell(batch, asks="waits")
    fresh = batch.claim(batch.params["keys"])
    _tell(batch, fresh=fresh)
