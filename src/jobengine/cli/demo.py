"""``jobengine demo``: a server of its own in a fresh folder, and the promises played against it one by one."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Final

from cyclopts import App, Parameter

from jobengine.cli.exits import CommandFailed, Exit

START_SECONDS: Final = 60
STOP_SECONDS: Final = 30

JOB_TYPES: Final = """\
[job_types.demo-ingest]
handler = "python:jobengine.cli.demo_events:handle"
"""

app = App(name="demo", default_parameter=Parameter(negative=()))


@app.default
def demo(*, events: Annotated[Path | None, Parameter(name="--events")] = None) -> int:
    """Play the promises against a server of its own, with real events; 0 only if each came out as told.

    Args:
        events: JSON lines with event_time and id; without it, files of this machine by their age.
    """
    from jobengine.cli.demo_events import DemoInputError, dated_events, read_events
    from jobengine.cli.demo_steps import Stage, play

    try:
        found = dated_events() if events is None else read_events(events)
    except DemoInputError as error:
        raise CommandFailed(str(error), Exit.USAGE) from None
    with tempfile.TemporaryDirectory(prefix="jobengine-demo-") as folder, _serving(Path(folder)) as (url, environ):
        path = Path(folder) / "events.jsonl"
        path.write_text("".join(json.dumps(event) + "\n" for event in found), encoding="utf-8")
        return play(Stage(url, Path(folder), path, found, lambda *words: _client(environ, *words)))


@contextmanager
def _serving(folder: Path) -> Generator[tuple[str, Mapping[str, str]]]:
    """Run a server in *folder* until the block ends; raises CommandFailed when it does not start."""
    (folder / "jobengine.toml").write_text(JOB_TYPES, encoding="utf-8")
    port = _free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBENGINE_")}
    environ = kept | {
        "JOBENGINE_DATA_DIR": str(folder / "data"),
        "JOBENGINE_CONFIG": str(folder / "jobengine.toml"),
        "JOBENGINE_PORT": str(port),
    }
    log = folder / "server.log"
    with log.open("wb") as errors:
        command = [sys.executable, "-m", "jobengine.cli", "serve"]
        server = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)  # noqa: S603 - our own program
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(server, url, log)
            yield url, environ
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(STOP_SECONDS)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx2

    until = monotonic() + START_SECONDS
    while monotonic() < until and server.poll() is None:
        try:
            if httpx2.get(f"{url}/readyz", trust_env=False).is_success:
                return
        except httpx2.HTTPError:
            pass
        sleep(0.1)
    words = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise CommandFailed(f"the demo's server does not start:\n{words}", Exit.ERROR)


def _client(environ: Mapping[str, str], *words: str) -> tuple[str, str]:
    """Make a client on the server's database and return its id and secret."""
    command = [sys.executable, "-m", "jobengine.cli", "client", "create", *words, "--json"]
    made = subprocess.run(command, env=environ, capture_output=True, check=False)  # noqa: S603 - our own program
    if made.returncode:
        raise CommandFailed(made.stderr.decode(errors="replace").strip(), Exit.ERROR)
    answer = json.loads(made.stdout)
    return answer["client_id"], answer["client_secret"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
