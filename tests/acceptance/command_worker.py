"""A `command:` handler in nothing but Python's library: it claims events, saves half way, and goes on from there.

Its batch comes on standard input; `JOBENGINE_URL` and `JOBENGINE_TOKEN` let it speak for this batch. The parameter
`then` says how it ends, the parameter `out` where it writes what it saw.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
RETRY = 75


def call(path: str, body: object) -> Any:
    """Send a worker's call of this batch."""
    request = urllib.request.Request(  # noqa: S310 - the server's own address
        f"{os.environ['JOBENGINE_URL']}/api/v1{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {os.environ['JOBENGINE_TOKEN']}", "Content-Type": "application/json"},
    )
    with NO_PROXY.open(request, timeout=20) as answer:
        return json.load(answer)


def main() -> int:
    """Work on the batch of standard input, and return the exit code that tells how it ended."""
    batch = json.load(sys.stdin)
    path, token = f"/batches/{batch['batch_id']}", batch["fencing_token"]
    keys = [f"{batch['window']['start']}/{number}" for number in range(10)]

    def claim(wanted: list[str]) -> list[str]:
        return call(f"{path}/events/claim", {"fencing_token": token, "keys": wanted})["fresh"]

    first = claim(keys[:5]) if batch["checkpoint"] is None else []
    call(f"{path}/heartbeat", {"fencing_token": token, "checkpoint": "half", "events": {"processed": len(first)}})
    second = claim(keys[5:])
    seen = {"batch": batch, "first": first, "second": second, "environ": dict(os.environ)}
    Path(batch["params"]["out"], f"{batch['batch_id']}.{batch['attempt']}.json").write_text(json.dumps(seen), "utf-8")
    then = batch["params"]["then"] if batch["checkpoint"] is None else "complete"
    if then == "die":
        os.abort()
    if then == "complete":
        call(f"{path}/heartbeat", {"fencing_token": token, "events": {"processed": len(first) + len(second)}})
    sys.stderr.write(f"the attempt was told to {then}\n")
    return {"complete": 0, "retry": RETRY, "fail": 1}[then]


if __name__ == "__main__":
    sys.exit(main())
