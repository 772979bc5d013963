"""A ``command:`` handler: it plays the part that the parameters of its batch name."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def tell(batch: Any, **words: Any) -> None:
    """Leave a note that the test reads."""
    note = Path(batch["params"]["notes"]) / f"{batch['batch_id']}.{batch['fencing_token']}.json"
    fresh = note.with_suffix(".new")
    fresh.write_text(json.dumps({"pid": os.getpid(), "batch": batch} | words))
    fresh.rename(note)


def call(path: str, body: object) -> tuple[int, Any]:
    """Call the service as the worker of this batch."""
    request = urllib.request.Request(  # noqa: S310 - the address is ours
        f"{os.environ['JOBENGINE_URL']}/api/v1/batches/{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {os.environ['JOBENGINE_TOKEN']}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - the address is ours
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def work(batch: Any) -> None:
    """Claim, save, and try what this batch's token must not be good for."""
    token, other = {"fencing_token": batch["fencing_token"]}, batch["params"]["other"]
    tell(
        batch,
        environment=dict(os.environ),
        claimed=call(f"{batch['batch_id']}/events/claim", {**token, "keys": ["a", "b"]}),
        beat=call(f"{batch['batch_id']}/heartbeat", {**token, "checkpoint": 1, "events": {"processed": 2}}),
        foreign=call(f"{other['batch_id']}/heartbeat", {"fencing_token": other["fencing_token"]})[0],
        another=call("claim", {"job_types": ["external"]})[0],
    )


def main() -> int:
    """Play the part and return the exit status."""
    batch = json.load(sys.stdin)
    match batch["params"]["parts"][0]:
        case "exit":
            print("this goes nowhere")
            sys.stderr.write("first words\n" * 10_000 + "last words \N{SNOWMAN}")
            return int(batch["params"]["status"])
        case "sleep":
            tell(batch, child=subprocess.Popen(["sleep", "600"]).pid)
            time.sleep(600)
        case "leave a daemon":
            tell(batch, child=subprocess.Popen(["sleep", "600"]).pid)
            return 1
        case _:
            work(batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
